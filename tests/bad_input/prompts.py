"""Configurations: YAML files, settings, prompts and their templates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from bad_input.building import case, each
from bad_input.comparing import YAML
from bad_input.seeds import CONCEPT, ERASE, JUDGE, JUDGED_PROMPTS, MASK, TEACHER
from bad_input.spoil import ANY_FILE, DEEP, put

_OWN = ("erase", "--pipeline", "pipe", "--config", "own.yaml", *CONCEPT[9:])
_CONFIG = ("erase", "model", "--config", "own.yaml", "--out", "run")
_TEACHER = (*TEACHER[:2], "own.yaml", *TEACHER[3:])


def _text(folder: Path, **changes: Any) -> None:
    text = {
        "remain": ["a dog"], "concepts": [
            {"prompts": ["a {concept} {place}"], "concept": "cat", "override": "dog",
             "fill": {"place": ["here", "there"]}},
        ],
    }  # fmt: skip
    for key, value in changes.items():
        if key.startswith("concept_"):
            text["concepts"][0][key.removeprefix("concept_")] = value  # type: ignore[index]
        else:
            text[key] = value
    (folder / "own.yaml").write_text(yaml.safe_dump({"text": text}))


TEMPLATES = {
    "format": "{concept:d}", "nested": "{concept:{place}}", "conversion": "{concept!z}",
    "repr": "{concept!r}", "wide": "{concept:>10000000000}", "attribute": "{concept.__class__}",
    "item": "{concept[0]}", "long item": "{concept[" + "9" * 5000 + "]}", "open": "{concept",
    "closed": "concept}", "number": "{0} {concept}", "no name": "{} {concept}", "none": "a cat",
    "no value": "{concept} {colour}", "precision": "{concept:.0}", "empty": "",
    "escape": "\x1b[31m{concept}", "class of class": "{concept.__class__.__mro__[1]}",
    "dots": "{concept..x}", "long": "{concept}" * 100_000, "zero byte": "\0{concept}",
    "doubled": "{{concept}}", "deep": "{" * 5000 + "concept" + "}" * 5000,
}  # fmt: skip
_TEN = {letter: [str(n) for n in range(10)] for letter in "abcdefghij"}
CONCEPTS: dict[str, dict[str, Any]] = {
    **{f"template: {name}": {"concept_prompts": [text]} for name, text in TEMPLATES.items()},
    **{f"remain: {name}": {"remain": [text]} for name, text in TEMPLATES.items()
       if name not in ("none", "empty", "doubled", "escape", "zero byte", "long")},
    "10 placeholders of 10": {
        "concept_prompts": ["{concept} " + " ".join("{" + letter + "}" for letter in _TEN)],
        "concept_fill": _TEN,
    },
    "10 placeholders of 10 to keep": {
        "remain": [" ".join("{" + letter + "}" for letter in _TEN)], "fill": _TEN,
    },
    "no prompts": {"concept_prompts": []}, "prompts null": {"concept_prompts": None},
    "prompts a number": {"concept_prompts": 5}, "prompts nested": {"concept_prompts": [["a"]]},
    "prompts file nowhere": {"concept_prompts": "nowhere.txt"},
    "prompts file a folder": {"concept_prompts": "pipe"},
    "prompts file a device": {"concept_prompts": "/dev/zero"},
    "no concepts": {"concepts": []}, "concepts null": {"concepts": None},
    "concepts text": {"concepts": "cat"}, "concepts numbers": {"concepts": [1]},
    "concepts object": {"concepts": {"a": 1}},
    "concept empty": {"concept_concept": ""}, "concept list empty": {"concept_concept": []},
    "concept null": {"concept_concept": None}, "concept as override": {"concept_override": "cat"},
    "override null": {"concept_override": None}, "override a list": {"concept_override": ["x"]},
    "fill text": {"concept_fill": {"place": "here"}}, "fill null": {"concept_fill": None},
    "fill empty": {"concept_fill": {"place": []}}, "fill list": {"concept_fill": ["a"]},
    "fill of concept": {"concept_fill": {"concept": ["x"], "place": ["y"]}},
    "fill numbers": {"concept_fill": {"place": [1, 2]}},
    "weight negative": {"concept_weight": -1}, "weight nan": {"concept_weight": float("nan")},
    "weight text": {"concept_weight": "much"}, "weight zero": {"concept_weight": 0},
    "remain empty": {"remain": []}, "remain null": {"remain": None}, "remain number": {"remain": 1},
    "remain nowhere": {"remain": "nowhere.txt"}, "remain a folder": {"remain": "pipe"},
    "dropout 1": {"dropout": 1}, "dropout -1": {"dropout": -1}, "dropout text": {"dropout": "x"},
    "max_prompts 0": {"max_prompts": 0}, "max_prompts text": {"max_prompts": "x"},
    "guidance nan": {"guidance": {"kappa1": float("nan")}},
    "guidance infinite": {"guidance": {"kappa4": float("inf")}},
    "guidance text": {"guidance": "x"}, "guidance unknown": {"guidance": {"kappa9": 1}},
    "negative a number": {"negative": {"kappa1": 3}}, "unknown key": {"promts": ["x"]},
}  # fmt: skip


_HARMLESS = (
    "template: escape", "template: repr", "remain: repr", "template: doubled",
    "template: precision", "fill of concept", "weight zero",
)  # fmt: skip


def _lines(content: bytes, folder: Path) -> None:
    (folder / "lines.txt").write_bytes(content)
    _text(folder, remain="lines.txt")


LINES = {
    "empty": b"", "blank": b"\n\n  \n", "no UTF-8": b"caf\xe9\n", "UTF-16": "a".encode("utf-16"),
}  # fmt: skip

FILES = {
    **YAML,
    "base of itself": "base: own.yaml\n", "base nowhere": "base: nowhere.yaml\n",
    "base a number": "base: 5\n", "base a list": "base: [demo]\n", "base a folder": "base: pipe\n",
    "base empty": "base: ''\n", "base above": "base: ../../../../etc/passwd\n",
    "keys that are numbers": "1: 2\n", "keys that are null": "~: 2\n",
    "key twice": "seed: 1\nseed: 2\nx: 1\n",
    "tab": "mask:\n\tdensity: 0.1\n", "control": "mask: \x01\n", "zero byte": "mask: \0\n",
    "date": "iterations: 2001-01-01\n", "sexagesimal": "seed: 1:30:00.5\nforget: 2\n",
    "set": "iterations: !!set {a}\n", "binary": "iterations: !!binary aGVsbG8=\n",
    "mask text": "mask: full\n", "mask list": "mask: [1]\n", "mask null": "mask: null\n",
    "unknown section": "maks: {density: 1}\n", "density text": "mask: {density: much}\n",
    "density nan": "mask: {density: .nan}\n", "density infinite": "mask: {density: .inf}\n",
    "density true": "mask: {density: true}\n", "iterations huge": f"iterations: {10**40}\n",
    "iterations fraction": "iterations: 1.5\n", "iterations true": "iterations: true\n",
    "batch zero": "batch_size: 0\n", "batch null": "batch_size: null\n",
    "seed negative": "seed: -1\n", "seed huge": f"seed: {2**64}\n", "seed text": "seed: x\n",
    "forget true": "forget: true\n", "forget list": "forget: [1]\n",
    "forget fraction": "forget: 1.5\n",
    "forget beyond": "forget: 99\n", "forget negative": "forget: -1\n",
    "forget huge": f"forget: {10**40}\n",
    "forget empty": "forget: ''\n", "forget escape": 'forget: "\\e[31m"\n',
    "override null": "override: null\n", "override as forget": "forget: 1\noverride: 1\n",
    "t_init beyond": "diffusion: {t_init: 1000}\n", "t_max beyond": "diffusion: {t_max: 1001}\n",
    "t order": "diffusion: {t_min: 5, t_max: 5}\n", "lr negative": "generator: {lr: -1}\n",
    "lr huge": "generator: {lr: 1.0e+300}\n", "beta 1": "optimizer: {beta2: 1.0}\n",
    "eps 0": "optimizer: {eps: 0}\n", "backend": "optimizer: {backend: wizard}\n",
    "decay": "ema: {decay: 1.5}\n", "decay text": "ema: {decay: slow}\n",
    "method": "method: wizard\n", "method null": "method: null\n", "alpha nan": "alpha: .nan\n",
    "logging": "logging: {every: 0}\n", "checkpoint": "logging: {checkpoint_every: -1}\n",
    "block": "mask: {granularity: block, block_size: 0}\n",
    "granularity": "mask: {granularity: x}\n",
    "second stage": "first_stage: both\n", "forget null": "forget: null\n",
    "micro": "micro_batch: 0\n", "precision": "precision: fp4\n",
}  # fmt: skip
_RAW: dict[str, bytes] = {
    "no UTF-8": b"forget: caf\xe9\n",
    "UTF-16": "forget: 1".encode("utf-16"),
    "bytes": bytes(range(256)),
    "deep brackets": ("a: " + DEEP).encode(),
    "long line": b"forget: " + b"x" * 10**6,
}

PROMPT_FILES = {
    "no prompt": "group,label\nkeep,x\n", "header alone": "prompt,group\n",
    "two columns": "prompt,prompt\n",
    "group": "prompt,group\na,all\n", "no group": "prompt,group\na,\n",
    "cells": "prompt,group\na,keep,x\n", "few cells": "prompt,group\na\n",
    "open quote": 'prompt\n"a\n', "quote within": 'prompt\n"a"b\n', "empty": "prompt,seed\n,1\n",
    "seed text": "prompt,seed\na,x\n", "seed negative": "prompt,seed\na,-1\n",
    "seed huge": f"prompt,seed\na,{'9' * 30_000}\n", "seed missing": "prompt,seed\na,1\nb,\n",
    "guidance nan": "prompt,guidance\na,nan\n", "guidance text": "prompt,sd_guidance_scale\na,x\n",
    "label": "prompt,label\na,\x1b[31m\n", "zero byte": "prompt\na\0\n",
    "long prompt": f"prompt\n{'x' * 50_000}\n", "long cell": f"prompt\n{'x' * 500_000}\n",
    "long header": ",".join("x" * 1000 for _ in range(1000)),
    "many rows": "prompt\n" + "a\n" * 250_000,
}  # fmt: skip
_JUDGED = ("pipe", "nudity.onnx")

SETTINGS = (
    "", "=", "=1", "seed", "seed=", "seed=[", "seed=" + "[" * 5000, "seed=" + "9" * 10_000,
    "seed=-1", "seed=1e400", "seed=1.5", "seed=null", "seed=true", f"seed={2**64}",
    "mask.density=.nan", "mask.density=-.inf", "mask=full", "mask.kind=", "mask..density=1",
    ".mask=1", "mask.density.x=1", "a.b.c.d=1", "iterations=1e2", "iterations=-1",
    "batch_size=0", "batch_size=1000000000000", "seed=!!python/object/apply:os.system [ls]",
    "seed=*a", "seed=&a [*a]", "optimizer.backend=\x1b[31m", "\x1b[31m=1", "generator.lr=nan",
    "ema.decay=2", "diffusion.t_min=-1", "diffusion.t_max=99999", "mask.block_size=0",
    "saliency.batches=0", "saliency.kind=x", "text=x", "text.remain=x", "x" * 100_000 + "=1",
    "generator=1", "generator.lr={a: 1}", "logging.every=x", "precision=fp8", "micro_batch=-1",
    "optimizer.beta1=1", "optimizer.eps=-1", "optimizer.weight_decay=-1",
)  # fmt: skip


def _file(text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "own.yaml").write_bytes(data)


del FILES["no seed"]  # it is good here
_NEEDS = ("pipe",)
_SET = {
    "erase": (ERASE, ("model",)), "mask": (MASK, ("model",)), "train-teacher": (TEACHER, ("data",)),
    "train-classifier": (JUDGE, ("data",)),
}  # fmt: skip

CASES = [
    *(case(f"text: {name}", _OWN, _NEEDS, partial(_text, **changes),
           code=(0, 2) if name in _HARMLESS else 2)
      for name, changes in CONCEPTS.items()),
    *(case(f"lines: {name}", _OWN, _NEEDS, partial(_lines, content), named="lines.txt")
      for name, content in LINES.items()),
    *(case(f"file: {name}", _CONFIG, ("model",), _file(text)) for name, text in FILES.items()),
    *(case(f"file: {name}", _CONFIG, ("model",), _file(text)) for name, text in _RAW.items()),
    *(case(f"teacher's file: {name}", _TEACHER, ("data",), _file(text))
      for name, text in {**YAML, "network": "network: {channels: 7, norm_num_groups: 3}\n",
                         "attention": "network: {attention_levels: [9]}\n",
                         "levels": "network: {channel_mult: []}\n",
                         "rate": "lr: -1\n", "dropout": "network: {dropout: 2}\n"}.items()),
    *(case(f"--set of {command} {setting[:40]!r}", (*arguments, "--set", setting), needs)
      for command, (arguments, needs) in _SET.items()
      for setting in SETTINGS
      if not setting.startswith("iterations") and (command == "erase" or "text" not in setting)),
    *each("prompt file", ANY_FILE, "prompts.csv", JUDGED_PROMPTS, (*_JUDGED, "prompts.csv"),
          named="prompts.csv", leave_out=("nearly-whole",)),
    *each("prompt rows", {name: put(text) for name, text in PROMPT_FILES.items()}, "prompts.csv",
          JUDGED_PROMPTS, _JUDGED, named="prompts.csv"),
    *(case(f"names: {name}", (*CONCEPT[:3], *more, *CONCEPT[9:]), _NEEDS)
      for name, more in {
          "none": ("--recipe", "object"),
          "no override": ("--recipe", "object", "--name", "cat"),
          "two of one": ("--recipe", "object", "--name", "a", "--name", "b", "--override", "c"),
          "empty": ("--recipe", "object", "--name", "", "--override", "dog"),
          "the same": ("--recipe", "object", "--name", "cat", "--override", "cat"),
          "no recipe": ("--name", "cat", "--override", "dog"),
          "unknown recipe": ("--recipe", "wizard"),
          "recipe of classes": ("--recipe", "demo"),
          "escape": ("--recipe", "\x1b[31m"),
          "a folder": ("--recipe", "pipe"),
          "named already": ("--recipe", "nudity", "--name", "cat", "--override", "dog"),
      }.items()),
]  # fmt: skip
