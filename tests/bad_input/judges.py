"""What judges: classifiers, statistics of real images, Inception weights, detectors, CLIP."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bad_input.building import case, each, keys, whole_json
from bad_input.seeds import EVALUATE
from bad_input.spoil import ANY_FILE, ARRAYS, TENSORS, edit_tensors, in_npz, put

WEIGHTS = "classifier/model.safetensors"
_NEEDS = ("model", "classifier")
_CARD = ("evaluate", "model", "--classifier", "judged", "--forget", "star", "--per-class", "2",
         "--steps", "1", "--json", "found.json")  # fmt: skip
_BY_FILE = (*EVALUATE[:3], "judge.pt", *EVALUATE[4:])
_REAL = (*EVALUATE, "--statistics", "real.npz")
_FLOATS = (*EVALUATE, "--statistics", "floats.npz")
_INCEPTION = (*EVALUATE, "--real", "real.npz", "--inception", "weights.pth")

_CONFIG_KEYS = {
    "num_classes": "missing null text negative zero fraction huge list",
    "in_channels": "null text negative zero list",
    "width": "null text negative zero huge",
    "dropout": "text negative huge nan list",
    "arch": "text zero null",
    "unknown": "text",
}


STATE_DICTS = {
    "no tensors": {"a": 1}, "empty": {}, "list": [1, 2], "number": 3,
    "another network": {"conv1.weight": torch.zeros(3, 3)},
    "of ImageNet": {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)},
    "sparse": {"fc.weight": torch.eye(3).to_sparse()},
    "scalars": {"fc.weight": torch.tensor(1.0), "fc.bias": torch.tensor(1.0)},
    "keys that are numbers": {1: torch.zeros(2), 2: torch.zeros(2)},
}  # fmt: skip


def _saved(content: object, name: str, folder: Path) -> None:
    torch.save(content, folder / name)


def _card(**changes: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "judged/card.json").write_text(
        json.dumps(json.loads((folder / "judged/card.json").read_text()) | changes)
    )


def _onnx(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / "nudity.onnx")


_SHOWN = (
    "erase", "--pipeline", "pipe", "--recipe", "object", "--name", "cat", "--override", "dog",
    "--out", "run", "--iterations", "1",
)  # fmt: skip
_STATISTICS_FILE = "judged/statistics.safetensors"

CASES = [
    *keys("config", "classifier/config.json", _CONFIG_KEYS, EVALUATE, _NEEDS, named="classifier"),
    *whole_json("config", "classifier/config.json", EVALUATE, _NEEDS, named="classifier"),
    *each("weights", ANY_FILE | TENSORS, WEIGHTS, EVALUATE, _NEEDS, named="classifier"),
    *whole_json("card", "judged/card.json", _CARD, ("model", "judged"), named="card.json"),
    *(
        case(f"card with {name}", _CARD, ("model", "judged"), _card(class_names=names))
        for name, names in {
            "numbers": [1, 2, 3], "null": None, "text": "abc", "object": {"a": 1},
            "nested": [["circle"]], "escape": ["\x1b[31m", "square", "star"],
            "another order": ["star", "square", "circle"], "a number": 7,
        }.items()
    ),
    *keys("card", "judged/card.json", {
        "test_figures": "text negative list",
        "test_figures.per_class": "missing null text negative fraction list",
        "test_figures.class_accuracy": "missing null text negative zero huge",
        "test_figures.frechet_without": "missing null text zero",
        "test_figures.confusion": "null text negative zero",
        "test_figures.source": "null zero list",
    }, _CARD, ("model", "judged"), named="card.json"),
    *each("statistics beside it", ANY_FILE | TENSORS, _STATISTICS_FILE, _CARD,
          ("model", "judged"), named="statistics", fine=("gone", "one-more", "escape-name")),
    *each("counts", {
        "negative": edit_tensors(lambda t: t["count"].neg_()),
        "missing": edit_tensors(lambda t: t.pop("count")),
        "huge": edit_tensors(lambda t: t["count"].fill_(2**62)),
    }, _STATISTICS_FILE, _CARD, ("model", "judged"), named="statistics"),
    *each("real images", ANY_FILE | ARRAYS, "real.npz", _REAL, (*_NEEDS, "real.npz"),
          named="real.npz"),
    *each(
        "floats", {
            "nan": in_npz(images=lambda array: array * float("nan")),
            "infinite": in_npz(images=lambda array: array / 0),
            "beyond [-1, 1]": in_npz(images=lambda array: array * 300),
            "float64": in_npz(images=lambda array: array.astype("float64") * 1e300),
        },
        "floats.npz", _FLOATS, (*_NEEDS, "floats.npz"), named="floats.npz",
    ),
    case("no such classifier", (*EVALUATE[:3], "nowhere", *EVALUATE[4:]), _NEEDS, named="nowhere"),
    case("a text as classifier", (*EVALUATE[:3], "precious.txt", *EVALUATE[4:]), _NEEDS),
    case("an empty folder", (*EVALUATE[:3], "void", *EVALUATE[4:]), _NEEDS,
         lambda folder: (folder / "void").mkdir(), named="void"),
    case("a model as classifier", (*EVALUATE[:3], "model", *EVALUATE[4:]), _NEEDS, named="model"),
    case("TorchScript", _BY_FILE, ("model", "judge.pt"), named="TorchScript"),
    *(case(f"state dict: {name}", _BY_FILE, ("model",), partial(_saved, content, "judge.pt"),
           named="judge.pt")
      for name, content in STATE_DICTS.items()),
    *(case(f"Inception: {name}", _INCEPTION, (*_NEEDS, "real.npz"),
           partial(_saved, content, "weights.pth"), named="weights.pth")
      for name, content in STATE_DICTS.items()),
    *each("detector", ANY_FILE, "nudity.onnx", (*_SHOWN, "--nudity-detector", "nudity.onnx"),
          ("pipe", "nudity.onnx"), named="nudity.onnx"),
    case("a detector that flips", (*_SHOWN, "--nudity-detector", "nudity.onnx"),
         ("pipe", "nudity.onnx"), _onnx(put(b"\x08\x08" + b"\xff" * 200)), named="nudity.onnx"),
    *(
        found
        for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json",
                     "tokenizer.json")
        for found in each(f"CLIP {file}", {
            "gone": ANY_FILE["gone"], "empty": ANY_FILE["empty"], "list": put("[1]"),
            "object": put("{}"), "deep": put("[" * 100_000), "latin": put(b'{"\xe4": 1}'),
        }, f"clip/{file}", (*_SHOWN, "--clip", "clip"), ("pipe", "clip"), named="clip")
    ),
    *each("CLIP weights", TENSORS, "clip/model.safetensors", (*_SHOWN, "--clip", "clip"),
          ("pipe", "clip"), named="clip"),
]  # fmt: skip
