"""Run folders that are taken up: checkpoints, configuration, locks, what else lies in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bad_input.building import case, each, whole_json
from bad_input.seeds import CLASSES, ERASE, EVALUATE, JUDGE, QUICK, SAMPLE, TEACHER
from bad_input.spoil import ANY_FILE, TENSORS, code_pickle, edit, put

_AGAIN = ("erase", "model", "--out", "done", *CLASSES, *QUICK)
_JUDGED_AGAIN = (*_AGAIN, "--classifier", "classifier")
_TAUGHT = ("train-teacher", *TEACHER[1:8], "taught", *TEACHER[9:])
_NEEDS = ("model", "done")
_NEWEST, _OLDER = "done/checkpoint-00000002.pt", "done/checkpoint-00000001.pt"
_DONE = ("done",)


def _content(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change what a checkpoint holds; nothing beside it knows of it."""

    def spoil(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)

    return spoil


def _both(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [change(folder / name) for name in (_NEWEST, _OLDER)]


def _flip(share: float, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 1
    file.write_bytes(content)


def _flip_weight(file: Path) -> None:
    """A bit of a weight, where only a sum over the file can notice it."""
    content = bytearray(file.read_bytes())
    state = torch.load(file, weights_only=True)
    weight = next(iter(state["networks"]["generator"].values())).numpy().tobytes()
    content[content.find(weight[:64]) + 5] ^= 1
    file.write_bytes(content)


KEYS = ("format", "iteration", "networks", "config", "mask", "optimizers", "ema")
WRONG = {
    "missing": None, "null": lambda: None, "text": lambda: "wizard", "list": lambda: [1],
    "number": lambda: -7, "object": lambda: {"a": 1}, "tensor": lambda: torch.zeros(3),
}  # fmt: skip


def _key(key: str, make: Callable[[], object] | None) -> Callable[[Path], object]:
    def change(state: dict[str, Any]) -> None:
        if make is None:
            state.pop(key, None)
        else:
            state[key] = make()

    return _content(change)


_FLIPS = {f"bit at {share}": partial(_flip, share) for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)}


def _lock_link(folder: Path) -> None:
    (folder / "done/run.lock").unlink()
    (folder / "done/run.lock").symlink_to("../../precious.txt")


def _lock_as(make: Callable[[Path], object], folder: Path) -> None:
    (folder / "done/run.lock").unlink()
    make(folder / "done/run.lock")


def _planted(name: str, folder: Path) -> None:
    """A link where a file of the run will be written."""
    shutil.rmtree(folder / "done/model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../../precious.txt")


def _foreign(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/thesis.tex").write_text("precious")


def _foreign_in_run(folder: Path) -> None:
    (folder / "done/thesis.tex").write_text("precious")


def _model_edited(file: str, key: str, value: object, folder: Path) -> None:
    shutil.rmtree(folder / "done/model")
    edit(folder / "model" / file, key, value)


CASES = [
    *each("newest checkpoint", ANY_FILE | _FLIPS, _NEWEST, _AGAIN, _NEEDS, code=(0, 2),
          writes=_DONE),  # the one before it is taken
    *(case(f"both checkpoints: {name}", _AGAIN, _NEEDS, _both(spoil), named="checkpoint",
           writes=("done/run.lock",))
      for name, spoil in {**ANY_FILE, **_FLIPS, "weight": _flip_weight}.items()
      if name != "gone"),
    *(case(f"checkpoint {key}={word}", _AGAIN, _NEEDS, _both(_key(key, make)),
           named="checkpoint", writes=("done/run.lock",))
      for key in KEYS for word, make in WRONG.items()),
    *each("config", {
        name: put(text) for name, text in {
            "empty": "", "list": "[1]", "text": "wizard", "no YAML": "a: [", "number": "5",
            "other": "iterations: 9\nseed: 3\n", "tag": "!!python/object/apply:os.system [ls]",
        }.items()
    }, "done/config.yaml", _AGAIN, _NEEDS, code=(0, 2), writes=_DONE),
    *each("mask of a run", TENSORS | ANY_FILE, "done/mask.safetensors", _AGAIN, _NEEDS,
          code=(0, 2), writes=_DONE),
    *whole_json("start.json", "done/start.json", _AGAIN, _NEEDS, code=(0, 2), writes=_DONE),
    *whole_json("curve.json", "done/curve.json", _JUDGED_AGAIN, ("model", "done", "classifier"),
                code=(0, 2), writes=_DONE),
    # What is refused leaves the results that are there.
    case("start.json that is a number", _AGAIN, _NEEDS, lambda f: put("5")(f / "done/start.json"),
         writes=("done/run.lock", "done/mask.safetensors"), named="start.json"),
    case("curve.json that is a text", _JUDGED_AGAIN, ("model", "done", "classifier"),
         lambda f: put("x")(f / "done/curve.json"),
         writes=("done/run.lock", "done/mask.safetensors"), named="curve.json"),
    case("lock that links to a file", _AGAIN, _NEEDS, _lock_link, named="run.lock"),
    case("lock that is a folder", _AGAIN, _NEEDS, partial(_lock_as, Path.mkdir), named="done"),
    case("lock that is a pipe", _AGAIN, _NEEDS, partial(_lock_as, os.mkfifo), named="run.lock"),
    case("lock that is a loop", _AGAIN, _NEEDS,
         partial(_lock_as, lambda f: f.symlink_to("run.lock")), named="run.lock"),
    *(case(f"link planted at {name}", _AGAIN, _NEEDS, partial(_planted, f"done/{name}"),
           code=(0, 2), writes=_DONE)
      for name in ("frozen.json", "config.yaml", "mask.safetensors", "curve.json", "start.json")),
    case("folder of something else", ERASE, ("model",), _foreign, named="run"),
    case("folder of something else, --force", (*ERASE, "--force"), ("model",), _foreign,
         named="run"),
    case("foreign files beside the run, --force", (*_AGAIN, "--force"), _NEEDS, _foreign_in_run,
         code=(0, 2), writes=("done/checkpoint-*.pt", "done/*.json", "done/*.png", "done/*.html",
                              "done/run.lock", "done/mask.safetensors", "done/config.yaml",
                              "done/model/unet", "done/model/scheduler",
                              "done/model/pecker_fast.json", "done/model/README.md")),
    *(case(f"another {key}", (*_AGAIN, *more), _NEEDS, named="done", writes=("done/run.lock",))
      for key, more in {
          "seed": ("--seed", "3"), "class": ("--forget", "square"),
          "density": ("--density", "0.3"), "number of iterations": ("--iterations", "1"),
          "kind of mask": ("--mask", "random"), "batch": ("--set", "batch_size=3"),
          "rate": ("--set", "generator.lr=0.5"), "precision": ("--set", "precision=bf16"),
      }.items()),
    *(case(f"model with another {name}", _AGAIN, _NEEDS,
           partial(_model_edited, file, key, value), named="done", writes=("done/run.lock",))
      for name, file, key, value in (
          ("schedule", "scheduler/scheduler_config.json", "beta_end", 0.03),
          ("order of classes", "pecker_fast.json", "class_names", ["square", "circle", "star"]),
          ("start of its betas", "scheduler/scheduler_config.json", "beta_start", 0.001),
      )),
    case("a run of train-teacher in erase", (*ERASE[:3], "taught", *ERASE[4:]),
         ("model", "taught"), named="taught", writes=("taught/run.lock",)),
    case("a run of erase in train-teacher", (*TEACHER[:8], "done", *TEACHER[9:]),
         ("data", "done"), named="done", writes=("done/run.lock",)),
    case("a run of erase in train-classifier", (*JUDGE[:8], "done", *JUDGE[9:]),
         ("data", "done"), named="done", writes=("done/run.lock",)),
    *each("teacher's checkpoint", ANY_FILE | _FLIPS, "taught/checkpoint-00000001.pt", _TAUGHT,
          ("data", "taught"), named="checkpoint", leave_out=("gone",),
          writes=("taught/run.lock",)),
    case("a run without a model", (SAMPLE[0], "done", *SAMPLE[2:]), ("done",),
         lambda folder: shutil.rmtree(folder / "done/model"), named="done"),
    case("evaluate of a run without a model", (EVALUATE[0], "done", *EVALUATE[2:]),
         ("done", "classifier"), lambda folder: shutil.rmtree(folder / "done/model"),
         named="done"),
    case("checkpoint with code alone", _AGAIN, _NEEDS, _both(put(code_pickle())),
         named="checkpoint", writes=("done/run.lock",)),
    case("a number that no run has", _AGAIN, _NEEDS,
         lambda folder: shutil.copy(folder / _NEWEST, folder / f"done/checkpoint-{10**30}.pt"),
         writes=_DONE, code=(0, 2)),
]  # fmt: skip
