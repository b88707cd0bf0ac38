"""Where results go: files, folders, devices, pipes, links, and what already lies there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bad_input.building import case
from bad_input.case import Case, leave_alone
from bad_input.seeds import (
    APPLY,
    COMPARE,
    CONCEPT,
    ERASE,
    EVALUATE,
    JUDGE,
    MASK,
    SAMPLE,
    TEACHER,
)


def _with(arguments: tuple[str, ...], option: str, *value: str) -> tuple[str, ...]:
    """The command line with another value of an option."""
    at = arguments.index(option)
    return (*arguments[: at + 1], *value, *arguments[at + 2 :])


_SAMPLES = ("sample", "model", "--out", "many", "--steps", "1", "--per-class", "1")
_CONVERT = ("convert", "ckpt.pth", "--out", "converted")
_DEMO = ("demo", "--out", "run", "--iterations", "1")

FILES = {
    "png": (SAMPLE, "--png", ("model",)),
    "json": (EVALUATE, "--json", ("model", "classifier")),
    "mask": (MASK, "--out", ("model",)),
}
"""Command lines that write a file: itself, its option, what it needs."""

FOLDERS = {
    "erase": (ERASE, "--out", ("model",)),
    "concept": (CONCEPT, "--out", ("pipe",)),
    "samples": (_SAMPLES, "--out", ("model",)),
    "patch": (APPLY, "--out", ("model", "patch.safetensors")),
    "convert": (_CONVERT, "--out", ("ckpt.pth",)),
    "compare": (COMPARE, "--out", ("done", "other.json")),
    "teacher": (TEACHER, "--out", ("data",)),
    "judge": (JUDGE, "--out", ("data",)),
    "kept": ((*EVALUATE[:-2], "--samples", "many"), "--samples", ("model", "classifier")),
    "demo": (_DEMO, "--out", ()),
}
"""Command lines that write a folder."""


def _link(target: str, name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).symlink_to(target)


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def _folder(folder: Path) -> None:
    (folder / "there").mkdir()
    leave_alone(folder / "there/thesis.tex")


def _read_only(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "there").chmod(0o555)


_LONG = "x" * 300
FILE_PLACES: dict[str, tuple[str, Callable[[Path], object] | None]] = {
    "": ("", None), "a folder": (".", None), "above": ("..", None), "root": ("/", None),
    "null": ("/dev/null", None), "full": ("/dev/full", None), "stdout": ("/dev/stdout", None),
    "what is there": ("precious.txt", None), "in a file": ("precious.txt/x.png", None),
    "no folder": ("nowhere/x.png", None), "too long": (_LONG, None),
    "too deep": ("/".join(["x"] * 3000), None), "escape": ("\x1b[31mred/x.png", None),
    "no UTF-8": ("x\udcff/y.png", None),
    "a pipe": ("pipe.png", _fifo), "a folder with things": ("there", _folder),
    "a link to a file": ("link.png", _link("../precious.txt", "link.png")),
    "a link to nowhere": ("link.png", _link("../nowhere/x", "link.png")),
    "a loop": ("link.png", _link("link.png", "link.png")),
}  # fmt: skip
FOLDER_PLACES: dict[str, tuple[str, Callable[[Path], object] | None]] = {
    "": ("", None), "here": (".", None), "above": ("..", None), "root": ("/", None),
    "null": ("/dev/null", None), "in null": ("/dev/null/x", None), "proc": ("/proc/x", None),
    "what is there": ("precious.txt", None), "in a file": ("precious.txt/run", None),
    "too long": (_LONG, None), "escape there": ("\x1b[31mred", lambda f: leave_alone(
        f / "\x1b[31mred"
    )),
    "a pipe": ("pipe.png", _fifo), "with things": ("there", _folder),
    "a link to a file": ("link", _link("../precious.txt", "link")),
    "a link to a folder with things": ("link", lambda f: (_folder(f), _link("there", "link")(f))),
    "a link to nowhere": ("link", _link("../nowhere/x", "link")),
    "a loop": ("link", _link("link", "link")),
}  # fmt: skip


def _places(force: bool) -> list[Case]:
    found = []
    for table, places in ((FILES, FILE_PLACES), (FOLDERS, FOLDER_PLACES)):
        for name, (arguments, option, needs) in table.items():
            for place, (value, change) in places.items():
                if name == "compare" and place in (
                    "here",
                    "above",
                    "root",
                    "with things",
                    "a link to a folder with things",
                ):
                    continue  # it adds its three files to whatever is there
                if force and table is FILES and place == "what is there":
                    continue  # --force is for that
                if force and value in ("/dev/null", "/dev/full", "/dev/stdout", "/"):
                    continue  # what would be lost is the machine's
                line = (*_with(arguments, option, value), *["--force"] * force)
                found.append(case(f"{name} to {place}{', --force' * force}", line, needs, change))
    return found


def _mine(name: str, force: bool) -> Case:
    """A command that is told to write over what it reads."""
    lines = {
        "model over itself": (_with(ERASE, "--out", "model"), ("model",)),
        "run in its model": (_with(ERASE, "--out", "model/run"), ("model",)),
        "patched over its patch": (_with(APPLY, "--out", "patch.safetensors"),
                                   ("model", "patch.safetensors")),
        "patched into the model": (_with(APPLY, "--out", "model/x"),
                                   ("model", "patch.safetensors")),
        "patched over what holds the model": (
            ("patch", "apply", "there/model", "patch.safetensors", "--out", "there"),
            ("patch.safetensors", "model")),
        "converted over its file": (_with(_CONVERT, "--out", "ckpt.pth"), ("ckpt.pth",)),
        "converted over a thesis": (_with(_CONVERT, "--out", "there"), ("ckpt.pth",)),
        "page in a run": (_with(COMPARE, "--out", "other.json"), ("done", "other.json")),
        "judge over its data": (_with(JUDGE, "--out", "data"), ("data",)),
        "teacher over its data": (_with(TEACHER, "--out", "data"), ("data",)),
        "samples over the model": (_with(_SAMPLES, "--out", "model"), ("model",)),
        "samples over the weights": (
            _with(_SAMPLES, "--out", "model/unet/diffusion_pytorch_model.safetensors/x"),
            ("model",)),
        "kept samples over the model": (
            (*EVALUATE[:-2], "--samples", "model"), ("model", "classifier")),
        "concept in its pipeline": (_with(CONCEPT, "--out", "pipe/run"), ("pipe",)),
        "concept over its pipeline": (_with(CONCEPT, "--out", "pipe"), ("pipe",)),
        "concept into its network": (_with(CONCEPT, "--out", "pipe/unet/run"), ("pipe",)),
    }  # fmt: skip
    line, needs = lines[name]
    change = None
    if "there" in str(line):
        change = _folder if "thesis" in name else _outer
    return case(f"{name}{', --force' * force}", (*line, *["--force"] * force), needs, change)


def _outer(folder: Path) -> None:
    _folder(folder)
    shutil.move(folder / "model", folder / "there/model")


MINE = (
    "model over itself", "run in its model", "patched over its patch", "patched into the model",
    "patched over what holds the model", "converted over its file", "converted over a thesis",
    "page in a run", "judge over its data", "teacher over its data", "samples over the model",
    "samples over the weights", "kept samples over the model", "concept in its pipeline",
    "concept over its pipeline", "concept into its network",
)  # fmt: skip


def _closed(name: str, mode: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).chmod(mode)


def _planted(folder: Path) -> None:
    """Links where a temporary file would be, for every process that may be meant."""
    for number in range(1, 33_000):
        os.symlink("../precious.txt", folder / f".x.{number}.tmp.png")


_NOBODY = {"nobody": True}

CASES = [
    *_places(force=False),
    *_places(force=True),
    *(_mine(name, force) for name in MINE for force in (False, True)),
    case("a mask called as its plot", _with(MASK, "--out", "m.png"), ("model",)),
    case("a mask without a suffix", _with(MASK, "--out", "m"), ("model",), code=(0, 2),
         writes=("m", "m.png")),
    case("temporary names that are links", SAMPLE, ("model",), _planted, code=0),
    *(case(f"{name} not to be written", _with(arguments, option, f"there/{value}"), needs,
           _read_only, named="there", options=_NOBODY)
      for name, (arguments, option, needs), value in (
          *((n, f, "x.png") for n, f in FILES.items()),
          *((n, f, "run") for n, f in FOLDERS.items()),
      )),
    *(case(f"{what} not to be read", line, needs, _closed(place, 0), options=_NOBODY, named=word)
      for what, line, needs, place, word in (
          ("weights", SAMPLE, ("model",), "model/unet/diffusion_pytorch_model.safetensors",
           "permission"),
          ("unet", SAMPLE, ("model",), "model/unet/config.json", "permission"),
          ("description", SAMPLE, ("model",), "model/pecker_fast.json", "permission"),
          ("schedule", SAMPLE, ("model",), "model/scheduler/scheduler_config.json", "schedul"),
          ("model", SAMPLE, ("model",), "model", "model"),
          ("classifier", EVALUATE, ("model", "classifier"), "classifier/model.safetensors",
           "permission"),
          ("card", EVALUATE, ("model", "classifier"), "classifier/config.json", "permission"),
          ("mask", (*ERASE, "--mask-file", "mask.safetensors"), ("model", "mask.safetensors"),
           "mask.safetensors", "permission"),
          ("patch", APPLY, ("model", "patch.safetensors"), "patch.safetensors", "permission"),
          ("checkpoint", _CONVERT, ("ckpt.pth",), "ckpt.pth", "permission"),
          ("index", CONCEPT, ("pipe",), "pipe/model_index.json", "permission"),
          ("text encoder", CONCEPT, ("pipe",), "pipe/text_encoder/model.safetensors",
           "permission"),
          ("data", JUDGE, ("data",), "data/train.npz", "permission"),
          ("report", COMPARE, ("done", "other.json"), "done/report.json", "permission"),
          ("figures", COMPARE, ("done", "other.json"), "other.json", "permission"),
      )),
]  # fmt: skip
