"""Every option of every command, with values of every kind that are wrong."""

from __future__ import annotations

from collections.abc import Iterator

import click
from bad_input.building import case
from bad_input.case import Case
from bad_input.seeds import (
    APPLY,
    COMPARE,
    CONCEPT,
    ERASE,
    EVALUATE,
    EXPORT,
    JUDGE,
    JUDGED_PROMPTS,
    MASK,
    PROMPTS,
    SAMPLE,
    TEACHER,
)

from pecker_fast.cli import group

_CONVERT = ("convert", "ckpt.pth", "--out", "converted")
LINES = {
    "sample": (SAMPLE, ("model",)),
    "sample of prompts": (PROMPTS, ("pipe",)),
    "erase": (ERASE, ("model",)),
    "erase of a concept": (CONCEPT, ("pipe",)),
    "mask": (MASK, ("model",)),
    "evaluate": (EVALUATE, ("model", "classifier")),
    "evaluate of prompts": (JUDGED_PROMPTS, ("pipe", "prompts.csv", "nudity.onnx")),
    "train-teacher": (TEACHER, ("data",)),
    "train-classifier": (JUDGE, ("data",)),
    "convert": (_CONVERT, ("ckpt.pth",)),
    "compare": (COMPARE, ("done", "other.json")),
    "patch apply": (APPLY, ("model", "patch.safetensors")),
    "patch remove": (("patch", "remove", *APPLY[2:]), ("model", "patch.safetensors")),
    "patch export": (EXPORT, ("model", "patch.safetensors")),
    "patch info": (("patch", "info", "patch.safetensors"), ("patch.safetensors",)),
    "demo": (("demo", "--out", "run", "--iterations", "1"), ()),
    "recipes show": (("recipes", "show", "object"), ()),
    "recipes copy": (("recipes", "copy", "object", "mine.yaml"), ()),
    "info": (("info",), ()),
}
"""A command line of each command that would succeed, and what it needs."""

_ESCAPE = "\x1b[31mred\x07\u202e"
_LONG = "x" * 100_000
WRONG: dict[type[click.ParamType], tuple[str, ...]] = {
    click.IntRange: ("", "nan", "1.5", "-1", "0", f"{10**12}", f"{10**21}", "9" * 5000, _ESCAPE),
    click.types.IntParamType: ("", "nan", "1.5", "-1", "0", f"{2**64}", "9" * 5000, _ESCAPE),
    click.types.FloatParamType: ("", "nan", "inf", "-inf", "-1", "1e308", "wizard", _ESCAPE),
    click.Choice: ("", "wizard", _ESCAPE, _LONG),
    click.types.StringParamType: ("", " ", "wizard", "-1", "99999999999999999999", "1.5", _ESCAPE,
                                  "x\udcff", _LONG, "a\nb"),
    click.Path: ("", "nowhere", "precious.txt", "/dev/null", _ESCAPE, "x\udcff", "x" * 5000,
                 "a\nb"),
}  # fmt: skip

OUTPUTS = ("--out", "--png", "--json", "--samples")
"""Places, see `outputs`."""

FREE = {
    "--neighbour", "--name", "--prompt", "--negative",  # any text is a prompt
}  # fmt: skip
HARMLESS = {
    ("--batch-size", f"{10**12}"), ("--seed", "0"), ("--t-init", "0"), ("--guidance", "-1"),
    ("--guidance", "1e308"), ("--prompts", "precious.txt"),
}  # fmt: skip
"""Values that a command can do something with."""

PAIRS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sample": (
        ("--out", "z", "--png", "x.png"),
        ("--count", "2", "--per-class", "2"), ("--prompt", "a cat"),
        ("--class", ","), ("--steps", "1", "--sampler", "ddim", "--eta", "2"),
        ("--sampler", "one-step", "--steps", "5"), ("--steps", "1001", "--sampler", "ddpm"),
        ("--sampler", "ddpm", "--eta", "0.5"), ("--guidance", "2"),
        ("--guidance", "2", "--steps", "5"), ("--t-init", "5000"), ("--t-init", "-1"),
    ),
    "sample of prompts": (
        ("--class", "0"), ("--sampler", "ddim"), ("--eta", "1"),
        ("--count", "3"), ("--out", "z"), ("--seed", "-1"), ("--guidance", "nan"),
        ("--guidance", "inf", "--steps", "2"), ("--steps", "100000"), ("--t-init", "100000"),
        ("--seed", f"{2**64}"),
    ),
    "erase": (
        ("--pipeline", "model"), ("--name", "cat"), ("--statistics", "real.npz"),
        ("--dataset", "cifar10"), ("--download",), ("--recipe", "demo",
         "--config", "demo"), ("--clip", "clip"), ("--nudity-detector", "x.onnx"),
        ("--neighbour", "a dog"), ("--generator", "nowhere"), ("--pseudo-score", "nowhere"),
        ("--override", "star"), ("--override", "random", "--forget", "random"), ("--forget", "3"),
        ("--mask-file", "m", "--mask", "random"), ("--print-config", "--set", "batchsize=1"),
        ("--dry-run", "--set", f"batch_size={10**13}"), ("--dry-run", "--forget", "wizard"),
    ),
    "erase of a concept": (
        ("--forget", "0"), ("--classifier", "c"), ("--statistics", "s"),
        ("--pseudo-score", "p"), ("--dataset", "cifar10"), ("--clip", "clip"), ("--from", "model"),
        ("--set", "until={}"), ("--generator", "pipe/vae"), ("--generator", "nowhere"),
        ("--nudity-detector", "x"),
        ("--set", "forget=1"),
    ),
    "evaluate": (
        ("--images", "folders"), ("--real", "real.npz"), ("--inception", "w.pth"),
        ("--dataset", "cifar10"), ("--override", "star"), ("--guidance", "2"), ("--sampler",
         "ddpm"), ("--real", "a", "--dataset", "cifar10"), ("--forget", "wizard"),
        ("--data-root", "data"), ("--download",), ("--clip", "clip"), ("--faces", "trusted:a:b"),
        ("--pipeline", "pipe"), ("--prompts", "prompts.csv"), ("--negative", "x"),
    ),
    "evaluate of prompts": (
        ("--images", "folders"), ("--forget", "0"), ("--classifier", "c"), ("--download",),
        ("--real", "real.npz"), ("--inception", "w.pth"), ("--eta", "0"), ("--sampler", "ddim"),
        ("--faces", "os:getcwd"), ("--faces", "trusted:os:sep"), ("--faces", "trusted:nowhere:x"),
        ("--clip", "pipe"), ("--steps", "2000"), ("--per-prompt", "1000000000"),
        ("--guidance", "nan"), ("--seed", "-1"), ("--t-init", "5000"),
    ),
    "train-classifier": (
        ("--epochs", "1"), ("--pretrained", "x.pth"), ("--set", "held_out=5"),
        ("--epochs", "0"), ("--arch", "resnet34", "--pretrained", "nowhere.pth"),
    ),
    "train-teacher": (("--without", "wizard"), ("--without", "99"), ("--without", "-1"),
                      ("--dry-run", "--set", f"batch_size={10**13}")),
    "patch apply": (("--applied", "nowhere"),),
    "demo": (("--concept", "--forget", "Bag"), ("--forget", "Bag", "--override", "Bag"),
             ("--concept", "--override", "Bag")),
}  # fmt: skip
"""Options that do not go together, or do not fit what they are about."""

USAGE = {
    "nothing": (), "unknown command": ("bake",), "unknown option": ("info", "--yaml"),
    "command with escape": ("\x1b[31mred",), "option with escape": ("info", "--\x1b[31mred"),
    "one argument more": ("info", "x"), "long command": ("x" * 100_000,),
    "command that is no UTF-8": ("x\udcff",), "option without value": ("sample", "model", "--png"),
    "flag with value": ("compare", "a", "--out", "b", "--force=yes"), "no argument": ("sample",),
    "no runs": ("compare", "--out", "page"), "two models": ("sample", "a", "b", "--png", "x.png"),
    "patch alone": ("patch", "wizard"), "patch of nothing": ("patch", "info"),
    "many options": ("erase", *["--set", "a=1"] * 5000), "dashes": ("--", "--"),
    "neither model nor pipeline": ("erase", "--out", "run"), "one dash": ("-",),
    "patch without file": ("patch", "apply", "model", "--out", "x"),
    "no out": ("erase", "model", "--forget", "0", "--override", "1"),
    "no place": ("sample", "model"), "no judge": ("evaluate", "model"),
    "no classes": ("erase", "model", "--out", "run"), "mask of nothing": ("mask", "model"),
}  # fmt: skip


def _command(name: str) -> click.Command:
    found: click.Command = group
    for word in name.split(" of ")[0].split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


def _values() -> Iterator[Case]:
    for name, (line, needs) in LINES.items():
        for option in _command(name).params:
            if not isinstance(option, click.Option) or option.is_flag or option.name == "settings":
                continue
            flag = next(flag for flag in option.opts if flag.startswith("--"))
            if flag in OUTPUTS:
                continue
            wrong = next(v for kind, v in WRONG.items() if isinstance(option.type, kind))
            for value in wrong:
                words = repr(value) if len(value) < 30 else f"{len(value)} times {value[0]}"
                code = (0, 2) if flag in FREE or (flag, value) in HARMLESS else 2
                yield case(f"{name} {flag} {words}", (*line, flag, value), needs, code=code)


CASES = [
    *_values(),
    *(case(f"{name} {' '.join(more)[:60]}", (*LINES[name][0], *more), LINES[name][1])
      for name, found in PAIRS.items() for more in found),
    *(case(f"usage: {name}", line) for name, line in USAGE.items()),
]  # fmt: skip
