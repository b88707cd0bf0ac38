"""Bad input of every kind at every door: one line that says why, and nothing else happens.

Entries of models one by one: `tests/models/test_entries.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from bad_input import seeds
from bad_input.engine import Case, check, leave_alone, prepare, run, snapshot
from bad_input.seeds import LINES
from bad_input.spoil import ANY_FILE, ARRAYS, DEEP, JSON_FILE, TENSORS, Spoil, edit, metadata, put
from PIL import Image

from pecker_fast.cli import group

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WEIGHTS = "diffusion_pytorch_model.safetensors"
NEWEST = "done/checkpoint-00000002.pt"

_IMAGES: dict[str, Spoil] = {
    "16 bits": lambda file: Image.new("I;16", (8, 8)).save(file),
    "another size": lambda file: Image.new("L", (9, 8)).save(file),
    "a BMP": lambda file: Image.new("L", (8, 8)).save(file, "BMP"),
    "a PostScript": put("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
}
_YAML: dict[str, Spoil] = {
    name: put(text) for name, text in {
        "list": "[1, 2]", "no YAML": "a: [", "deep": "a: " + DEEP[:5000],
        "a tag": "!!python/object/apply:os.system ['touch harmed.txt']",
        "an anchor of itself": "a: &a [*a]\niterations: 3\nseed: 0\n",
        "not UTF-8": b"method: \xff", "digits": "iterations: " + "9" * 10_000,
        "nested": "iterations: 3\nseed: 0\nforget: [[1]]\n",
    }.items()
}  # fmt: skip


def _checkpoint(change: Any) -> Spoil:
    def spoil(file: Path) -> None:
        for each in file.parent.glob("checkpoint-*.pt"):  # an older one would be taken
            state = torch.load(each, weights_only=True)
            change(state)
            torch.save(state, each)

    return spoil


_CHECKPOINTS: dict[str, Spoil] = {
    "no networks": _checkpoint(lambda state: state.pop("networks")),
    "text networks": _checkpoint(lambda state: state.update(networks="wizard")),
    "negative iteration": _checkpoint(lambda state: state.update(iteration=-7)),
    "other format": _checkpoint(lambda state: state.update(format=[1])),
    "no moments": _checkpoint(lambda state: state.update(optimizers=None)),
}
_PUBLISHED: dict[str, Spoil] = {
    name: partial(torch.save, content) for name, content in {
        "number": 3, "text": "wizard", "empty": [], "nested": [[[[{}]]]], "tensor": torch.zeros(3),
        "numbers as keys": {1: torch.zeros(3)}, "code": torch.nn.Linear(2, 2),
        "another network": [{"a": torch.zeros(3, 3)}],
        "nan": {"conv_in.weight": torch.full((8, 3, 3, 3), torch.nan)},
    }.items()
}  # fmt: skip
_DICTIONARIES: dict[str, Spoil] = {
    name: lambda file, change=change: torch.save(change(torch.load(file)), file)
    for name, change in {
        "wrong shapes": lambda d: {n: v[:0] for n, v in d.items()},
        "twos": lambda d: {n: v + 2 for n, v in d.items()},
        "texts": lambda d: dict.fromkeys(d, "text"),
        "one missing": lambda d: dict(list(d.items())[1:]),
        "sparse": lambda d: {n: v.to_sparse() for n, v in d.items()},
        "nothing salient": lambda d: {n: v * 0 for n, v in d.items()},
        "a list": lambda d: list(d.values()),
    }.items()
}  # type: ignore[misc]  # mypy knows no default of a lambda


def _own(**words: str | None) -> dict[str, Spoil]:
    """Changes of the metadata of our own safetensors files."""
    return {f"{key}={str(word)[:9]!a}": metadata(key, word) for key, word in words.items()}


# A file, the command that reads it, what its line must name, how it is spoiled, and what is taken
# all the same.
DOORS: list[tuple[str, str, str, dict[str, Spoil], set[str]]] = [
    ("model/unet/config.json", "sample", "model", ANY_FILE | JSON_FILE, set()),
    ("model/scheduler/scheduler_config.json", "mask", "schedul", ANY_FILE | JSON_FILE, set()),
    ("model/pecker_fast.json", "sample", "pecker_fast.json", JSON_FILE | {
        "other names": edit("class_names", [1, 2, 3]), "unknown": edit("wizard", 3)}, set()),
    (f"model/unet/{WEIGHTS}", "erase", "model", ANY_FILE | TENSORS, set()),
    ("latent/transformer/config.json", "sample of a DiT", "latent", JSON_FILE, set()),
    (f"latent/vae/{WEIGHTS}", "sample of a DiT", "vae", TENSORS, set()),
    ("pipe/model_index.json", "erase of a concept", "model_index.json", ANY_FILE | JSON_FILE,
     set()),
    ("pipe/scheduler/scheduler_config.json", "erase of a concept", "schedul", JSON_FILE, set()),
    (f"pipe/unet/{WEIGHTS}", "sample of prompts", "unet", TENSORS, set()),
    ("pipe/text_encoder/config.json", "sample of prompts", "text_encoder", JSON_FILE, set()),
    ("pipe/text_encoder/model.safetensors", "sample of prompts", "text_encoder", TENSORS, set()),
    (f"pipe/vae/{WEIGHTS}", "sample of prompts", "vae", ANY_FILE, set()),
    ("pipe/tokenizer/tokenizer_config.json", "sample of prompts", "tokenizer", JSON_FILE, set()),
    ("classifier/config.json", "evaluate", "classifier", ANY_FILE | JSON_FILE, set()),
    ("classifier/model.safetensors", "evaluate", "classifier", TENSORS, set()),
    ("real.npz", "evaluate of images", "real.npz", ANY_FILE | ARRAYS, set()),
    ("folders/star/0.png", "evaluate of folders", "", ANY_FILE | _IMAGES,
     {"gone", "folder", "dangling", "device", "fifo"}),
    ("samples/samples.json", "evaluate of samples", "samples.json", JSON_FILE, set()),
    ("data/train.npz", "train-teacher", "data", ANY_FILE | ARRAYS,
     {"classes of escapes"}),
    ("data/test.npz", "train-classifier", "data", ARRAYS, set()),
    ("prompts.csv", "evaluate of prompts", "prompts.csv", ANY_FILE, set()),
    ("nudity.onnx", "evaluate of prompts", "nudity.onnx", ANY_FILE, set()),
    ("ckpt.pth", "convert", "ckpt.pth", ANY_FILE | _PUBLISHED, set()),
    ("weights.safetensors", "convert weights", "weights.safetensors", ANY_FILE | TENSORS, set()),
    ("mask.safetensors", "erase masked", "mask", ANY_FILE | TENSORS | _own(
        format=None, version="x", shapes=DEEP, granularity="\x1b[31m", digest=None), set()),
    ("salun.pt", "erase SalUn", "", ANY_FILE | _DICTIONARIES, set()),
    ("patch.safetensors", "patch apply", "patch.safetensors", ANY_FILE | TENSORS | _own(
        format=None, version="x", tensors=DEEP, about="[]", digest="x"), set()),
    ("patch.safetensors", "patch info", "patch.safetensors", ANY_FILE, set()),
    (NEWEST, "erase again", "checkpoint", _CHECKPOINTS, set()),
    # The name of the class, which is cut in two, is the model's to say.
    ("done/config.yaml", "compare", "done", ANY_FILE | _YAML, {"half"}),
    ("done/report.json", "compare", "report.json", JSON_FILE | {
        "after": edit("after", None), "a share": edit("after.forget_accuracy", -5)}, set()),
    ("done/curve.json", "compare", "curve.json", JSON_FILE, set()),
    ("other.json", "compare", "other.json", ANY_FILE | JSON_FILE, set()),
]  # fmt: skip
PLACES: dict[str, tuple[str, Any]] = {
    "nothing": ("", None), "here": (".", None), "root": ("/", None), "null": ("/dev/null", None),
    "what is there": ("precious.txt", None), "in a file": ("precious.txt/x.png", None),
    "too long": ("x" * 300, None), "no UTF-8": ("x\udcff/y.png", None),
    "a folder with things": ("there", lambda folder: (
        (folder / "there").mkdir(), leave_alone(folder / "there/thesis.tex"))),
    "a link to a file": ("link.png", lambda folder: (
        folder / "link.png").symlink_to("../precious.txt")),
    "a loop": ("link.png", lambda folder: (folder / "link.png").symlink_to("link.png")),
}  # fmt: skip
WRITING = (
    "sample", "mask", "erase", "erase of a concept", "evaluate", "patch apply", "convert",
    "train-teacher", "train-classifier",
)  # fmt: skip
OUTPUTS = ("--out", "--png", "--json", "--samples")
_LONG = "x" * 100_000
WRONG: dict[type[click.ParamType], tuple[str, ...]] = {
    click.IntRange: ("nan", "9" * 5000),
    click.types.IntParamType: ("1.5", f"{2**64}"),
    click.types.FloatParamType: ("nan", "wizard"),
    click.Choice: ("wizard", "\x1b[31mred\x07\u202e"),
    click.types.StringParamType: ("", "x\udcff"),
    click.Path: ("nowhere", "a\nb"),
}
TEXTS = ("--name", "--prompt")  # any text is a prompt
VARIABLES = {
    "WORLD_SIZE": "abc", "RANK": "-1", "TMPDIR": "/nowhere", "HOME": "/dev/null", "COLUMNS": "-1",
    "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "", "MPLBACKEND": "wizard",
    "OMP_NUM_THREADS": "-1", "HF_HOME": "/dev/null", "CUDA_VISIBLE_DEVICES": "wizard",
}  # fmt: skip
MORE = {  # options that do not fit, or not one another
    "sample": ("--count 2 --per-class 2", "--sampler one-step --steps 5", "--t-init 5000",
               "--guidance 2 --steps 5", "--prompt x"),
    "sample of prompts": ("--class 0", "--steps 100000", "--guidance nan"),
    "erase": ("--pipeline model", "--dataset cifar10", "--clip clip", "--forget 3", "--set seed=[",
              "--override star", "--set mask.density=.nan", "--set batch_size=0", "--set x",
              "--set generator.lr={a:1}", "--config model", "--iterations 0"),
    "erase of a concept": ("--forget 0", "--classifier model", "--set text.remain=x"),
    "erase again": ("--seed 3", "--density 0.3", "--mask random", "--set batch_size=3"),
    "evaluate": ("--images folders", "--real a --dataset cifar10", "--forget wizard"),
    "evaluate of prompts": ("--faces os:getcwd", "--faces trusted:nowhere:x", "--per-prompt 9" * 9),
    "convert": ("--classes a,b", "--classes a,a,b", "--slot generator", "--size 7"),
    "patch apply": ("--applied nowhere",), "patch export": ("--to lora",), "info": ("x", "--yaml"),
    "compare": ("--force=yes",), "train-teacher": ("--without wizard",),
}  # fmt: skip
USAGE = (("bake",), ("\x1b[31mred",), (_LONG,), ("sample",), ("erase", "--out", "run"),
         ("convert", "model", "--out", "x"), ("sample", "nowhere", "--png", "x.png"))  # fmt: skip


def _cases() -> Iterator[Case]:
    for file, name, named, table, fine in DOORS:
        line, needs, writes = LINES[name]
        for how, spoil in table.items():
            yield Case(
                f"{name}, {file}: {how}", line, needs, lambda f, s=spoil, n=file: s(f / n),  # type: ignore[misc]
                named.split(), (0, 2) if how in fine else (2,),
                (*writes, "done/run.lock", "done/mask.safetensors") if how in fine
                or "done" in needs else (),
            )  # fmt: skip
    for name in WRITING:
        line, needs, _ = LINES[name]
        at = next(index for index, word in enumerate(line) if word in OUTPUTS) + 1
        for place, (value, change) in PLACES.items():
            yield Case(f"{name} to {place}", (*line[:at], value, *line[at + 1 :]), needs, change)
    for name, (line, needs, _) in LINES.items():
        command: Any = group
        for word in name.split()[: 1 + name.startswith("patch")]:
            command = command.commands[word]
        for option in command.params if name in (*WRITING, "sample of prompts") else ():
            flag = next((flag for flag in option.opts if flag.startswith("--")), "")
            if not flag or option.is_flag or flag in (*OUTPUTS, *TEXTS, "--set", "--data-root"):
                continue
            for value in next(v for kind, v in WRONG.items() if isinstance(option.type, kind)):
                yield Case(f"{name} {flag} {value[:9]!a}", (*line, flag, value), needs)
        for more in MORE.get(name, ()):
            writes = ("done/run.lock",) if name == "erase again" else ()
            yield Case(f"{name} {more[:40]}", (*line, *more.split()), needs, writes=writes)
    for line in USAGE:
        yield Case(f"usage: {' '.join(line)[:30]!a}", line)
    for variable, value in VARIABLES.items():
        line, needs, writes = LINES["sample"]
        yield Case(
            f"{variable}={value}", line, needs, None, (), (0, 2), writes, {variable: value}
        )  # fmt: skip


CASES = {case.id: case for case in _cases()}


@pytest.fixture(scope="module")
def valid() -> Iterator[Path]:
    """What `seeds` makes."""
    with tempfile.TemporaryDirectory(prefix="bad") as folder:
        seeds.make(Path(folder))
        yield Path(folder)


@pytest.mark.parametrize("name", CASES)
def test_is_refused(name: str, valid: Path) -> None:
    case = CASES[name]
    root = Path(tempfile.mkdtemp(prefix="bad"))
    try:
        folder = prepare(case, valid, root)
        before = snapshot(root)
        environment = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}
        ended = run(folder, case.arguments, {**environment, **(case.environment or {})})
        found = check(case, ended, before, snapshot(root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    last = (ended.err.strip().splitlines() or ["nothing"])[-1]
    assert not found, f"{'; '.join(found)}. It says: {last[:400]!r}"
