"""Masks and patches: our own files, and SalUn's dictionaries."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bad_input.building import case, each
from bad_input.seeds import APPLY, ERASE, EXPORT
from bad_input.spoil import ANY_FILE, DEEP, TENSORS, edit_metadata, edit_tensors

_MASKED = (*ERASE, "--mask-file", "mask.safetensors")
_SALUN = (*ERASE, "--mask-file", "salun.pt")
_INFO = ("patch", "info", "patch.safetensors")
_REMOVE = ("patch", "remove", "model", "patch.safetensors", "--out", "patched")

Metadata = dict[str, str]


def _set(key: str, value: str | None) -> Callable[[Path], object]:
    def change(metadata: Metadata) -> None:
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value

    return edit_metadata(change)


def _json(key: str, change: Callable[[object], object]) -> Callable[[Path], object]:
    """Change what the JSON of a metadata entry says."""

    def spoil(metadata: Metadata) -> None:
        if key not in metadata:
            raise KeyError(f"{key}; there are {sorted(metadata)}")
        metadata[key] = json.dumps(change(json.loads(metadata[key])))

    return edit_metadata(spoil)


def _shape(value: object) -> Callable[[object], object]:
    def change(shapes: object) -> object:
        assert isinstance(shapes, list)
        return [[shapes[0][0], value], *shapes[1:]]

    return change


_WORDS = {
    "missing": None, "empty": "", "text": "wizard", "number": "7", "null": "null", "list": "[]",
    "object": "{}", "deep": DEEP, "digits": "9" * 100_000, "negative": "-5", "nan": "nan",
    "escape": "\x1b[31mred", "pairs": "[[1, 2]]",
}  # fmt: skip


def _metadata(keys: dict[str, str]) -> dict[str, Callable[[Path], object]]:
    return {
        f"{key}={word}": _set(key, _WORDS[word]) for key, words in keys.items()
        for word in words.split()
    }  # fmt: skip


MASK_METADATA = _metadata({
    "format": "missing empty text escape",
    "version": "missing empty text number escape",
    "shapes": "missing empty text number null object deep digits pairs",
    "granularity": "empty text escape",
    "block_size": "empty text negative digits nan",
    "digest": "missing empty text",
})  # fmt: skip
MASK_SHAPES = {
    f"shape {name}": _json("shapes", _shape(value))
    for name, value in {
        "negative": [-1, 3], "of 2**63": [2**63], "huge": [2**31, 2**31], "text": "abc",
        "null": None, "fractions": [1.5], "of many dimensions": [1] * 100_000, "nested": [[1]],
        "true": [True],
    }.items()
}  # fmt: skip
BITS = {
    "all set": edit_tensors(lambda t: [v.fill_(255) for v in t.values()]),
    "none set": edit_tensors(lambda t: [v.zero_() for v in t.values()]),
    "one flipped": edit_tensors(lambda t: t[sorted(t)[0]].view(-1)[:1].add_(1)),
}

PATCH_METADATA = _metadata({
    "format": "missing text",
    "version": "missing text number",
    "tensors": "missing empty text number null list object deep digits pairs",
    "about": "missing text number null list deep digits",
    "digest": "missing text",
    "package": "missing empty escape",
})  # fmt: skip

DICTIONARIES = {
    "wrong shapes": lambda d: {n: v[:0] for n, v in d.items()},
    "fractions": lambda d: {n: v + 0.5 for n, v in d.items()},
    "twos": lambda d: {n: v + 2 for n, v in d.items()},
    "nan": lambda d: {n: v * float("nan") for n, v in d.items()},
    "text values": lambda d: dict.fromkeys(d, "text"),
    "numbers as keys": lambda d: dict(enumerate(d.values())),
    "one missing": lambda d: dict(list(d.items())[1:]),
    "one more": lambda d: {**d, "other": torch.ones(3)},
    "sparse": lambda d: {n: v.to_sparse() for n, v in d.items()},
    "complex": lambda d: {n: v.to(torch.complex64) for n, v in d.items()},
    "meta": lambda d: {n: v.to("meta") for n, v in d.items()},
    "expanded": lambda d: {n: torch.ones(()).expand(v.shape) for n, v in d.items()},
    "huge": lambda d: {**d, "conv_in.weight": torch.ones(()).expand(2**20, 2**20)},
    "a list": lambda d: list(d.values()),
    "a tensor": lambda d: torch.ones(3),
    "nested": lambda d: {"state_dict": {"mask": d}},
    "empty": lambda d: {},
    "none": lambda d: None,
    "escape": lambda d: {f"\x1b[31m{n}": v for n, v in d.items()},
    "nothing salient": lambda d: {n: v * 0 for n, v in d.items()},
}


def _dictionary(change: Callable[[dict[str, torch.Tensor]], object], file: Path) -> None:
    torch.save(change(torch.load(file)), file)


def _copy_as(name: str, folder: Path) -> None:
    (folder / "mask.safetensors").rename(folder / name)


def _about(value: object) -> Callable[[Path], object]:
    return lambda folder: _set("about", json.dumps(value))(folder / "patch.safetensors")


_NEEDS = ("model", "mask.safetensors")
_PATCHED = ("model", "patch.safetensors")

CASES = [
    *each("mask", ANY_FILE | TENSORS | MASK_METADATA | MASK_SHAPES | BITS, "mask.safetensors",
          _MASKED, _NEEDS, named="mask"),
    *each("SalUn", {n: partial(_dictionary, c) for n, c in DICTIONARIES.items()}, "salun.pt",
          _SALUN, ("model", "salun.pt"), named="mask"),
    *each("SalUn file", ANY_FILE, "salun.pt", _SALUN, ("model", "salun.pt"), named="salun.pt"),
    case("mask nowhere", (*ERASE, "--mask-file", "nowhere.safetensors"), _NEEDS, named="nowhere"),
    case("a mask called .txt", (*ERASE, "--mask-file", "m.txt"), _NEEDS,
         partial(_copy_as, "m.txt"), code=(0, 2)),
    case("a patch as mask", (*ERASE, "--mask-file", "patch.safetensors"), _PATCHED,
         named="patch.safetensors"),
    case("weights as mask",
         (*ERASE, "--mask-file", "model/unet/diffusion_pytorch_model.safetensors"), ("model",),
         named="diffusion_pytorch_model"),
    *each("patch", ANY_FILE | TENSORS | PATCH_METADATA, "patch.safetensors", _INFO,
          ("patch.safetensors",), named="patch.safetensors"),
    *each("patch in apply", BITS, "patch.safetensors", APPLY, _PATCHED, named="patch.safetensors"),
    case("exported over its patch", (*EXPORT[:4], "--to", "vllm-sparse", "--out",
         "patch.safetensors", "--force"), _PATCHED, named="patch.safetensors"),
    *each("base", ANY_FILE | TENSORS, "model/unet/diffusion_pytorch_model.safetensors", APPLY,
          _PATCHED),
    case("a patch that is not on it", _REMOVE, _PATCHED, named="patch"),
    case("a mask as patch", ("patch", "info", "mask.safetensors"), ("mask.safetensors",),
         named="mask.safetensors"),
    case("a patch nowhere", ("patch", "info", "nowhere.safetensors"), named="nowhere"),
    case("a patch twice", ("patch", "info", "patch.safetensors", "patch.safetensors"),
         ("patch.safetensors",), code=(0, 2)),
    case("applied nowhere", (*APPLY, "--applied", "nowhere"), _PATCHED, named="nowhere"),
    case("model nowhere", ("patch", "apply", "nowhere", *APPLY[3:]), _PATCHED, named="nowhere"),
    case("model is a file", ("patch", "apply", "precious.txt", *APPLY[3:]), _PATCHED,
         named="precious.txt"),
    case("model is void", ("patch", "apply", "void", *APPLY[3:]), _PATCHED,
         lambda folder: (folder / "void").mkdir(), named="void"),
    *(case(f"about {name}", _INFO, ("patch.safetensors",), _about(value), code=(0, 2))
      for name, value in {
          "escape": {"x": "\x1b[31mred\x07", "\x1b]0;t\x07": "y"}, "lines": {"x": "a\nb: c"},
          "nested": {"x": {"y": [1]}}, "direction": {"x": "\u202eabc"}, "long": {"x": "y" * 10**6},
      }.items()),
]  # fmt: skip
