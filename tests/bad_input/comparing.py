"""`compare`: every file that it reads of a run, and reports of `evaluate`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from bad_input.building import case, each, keys, whole_json
from bad_input.seeds import COMPARE
from bad_input.spoil import ANY_FILE, edit_metadata, put

_NEEDS = ("done", "other.json")

# Of types that a schema refuses a few; all others are as wrong everywhere.
REPORT = {
    "after": "null list",
    "after.class_accuracy": "negative object",
    "after.forget_accuracy": "huge nan negative",
    "after.forget": "huge negative fraction",
    "after.override": "huge negative",
    "versions": "deep",
    "versions.torch": "escape",
    "frozen_parameters": "negative",
}
CURVE = {
    "0": "null text",
    "0.iteration": "missing negative",
    "0.forget_accuracy": "nan",
    "0.wall_s": "infinity",
    "0.forget_count": "negative",
}
ABOUT = {"class_names": "object nested deep", "figures.iterations": "text negative"}
JUDGEMENT = {
    "format": "missing null huge",
    "fidelity": "missing object",
    "classes": "missing object nested",
    "forget": "huge negative fraction",
    "override": "huge",
    "model": "missing null",
    "class_accuracy": "object pair",
    "processes": "negative",
}
YAML = {
    "empty": "", "list": "[1, 2]", "text": "wizard", "no YAML": "a: [", "number": "5",
    "no seed": "iterations: 3\n", "mask is a word": "iterations: 3\nseed: 0\nmask: full\n",
    "mask is null": "iterations: 3\nseed: 0\nmask: null\n",
    "text iterations": "iterations: many\nseed: 0\n",
    "nested forget": "iterations: 3\nseed: 0\nforget: [[1]]\n",
    "forget beyond": "iterations: 3\nseed: 0\nforget: 99\n",
    "generator a word": "iterations: 3\nseed: 0\ngenerator: x\nforget: 1\n",
    "method a list": "iterations: 3\nseed: 0\nmethod: [1]\n",
    "tag": "!!python/object/apply:os.system ['touch harmed.txt']",
    "anchor of itself": "a: &a [*a]\niterations: 3\nseed: 0\n",
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{n}: &{n} [{','.join(['*' + chr(ord(n) - 1)] * 10)}]\n" for n in "bcdefghi"
    ) + "iterations: *i\nseed: 0\n",
    "deep": "a: " + "[" * 5_000 + "]" * 5_000 + "\niterations: 3\nseed: 0\n",
    "digits": "iterations: " + "9" * 10_000 + "\nseed: 0\n",
    "of a classifier": "arch: small\niterations: 3\nseed: 0\n",
    "of text": "text: {}\niterations: 3\nseed: 0\n",
    "escape": 'iterations: 3\nseed: 0\nmethod: "\\e[31mred"\n',
}  # fmt: skip


def _copied(name: str, folder: Path) -> None:
    shutil.copytree(folder / "done", folder / name)


_DENSITY = {
    word: edit_metadata(partial(dict.update, density=word))
    for word in ("", "wizard", "nan", "-1", "7", "9" * 10_000)
}

CASES = [
    *keys("report", "done/report.json", REPORT, COMPARE, _NEEDS, named="report.json"),
    *keys("curve", "done/curve.json", CURVE, COMPARE, _NEEDS, named="curve.json"),
    *keys("description", "done/model/pecker_fast.json", ABOUT, COMPARE, _NEEDS,
          named="pecker_fast.json"),
    *keys("judgement", "other.json", JUDGEMENT, COMPARE, _NEEDS, named="other.json"),
    *each("config", {name: put(text) for name, text in YAML.items()}, "done/config.yaml", COMPARE,
          _NEEDS, named="done"),
    *each("config file", ANY_FILE, "done/config.yaml", COMPARE, _NEEDS, named="done"),
    *(
        found
        for file in ("report.json", "frozen.json", "curve.json", "start.json",
                     "model/pecker_fast.json")
        for found in whole_json(file, f"done/{file}", COMPARE, _NEEDS, named=file,
                                fine=("gone", "object"))
    ),
    *whole_json("other.json", "other.json", COMPARE, _NEEDS, named="other.json"),
    *each("mask", ANY_FILE | _DENSITY, "done/mask.safetensors", COMPARE, _NEEDS,
          named="mask.safetensors", fine=("gone",)),
    case("the same run twice", ("compare", "done", "done/", "--out", "page"), _NEEDS,
         named="twice"),
    case("nowhere", ("compare", "nowhere", "--out", "page"), named="nowhere"),
    case("an empty folder", ("compare", "void", "--out", "page"), (),
         lambda folder: (folder / "void").mkdir(), named="void"),
    case("a model folder", ("compare", "model", "--out", "page"), ("model",), named="model"),
    case("a text", ("compare", "precious.txt", "--out", "page"), named="precious.txt"),
    case("the page in a file", (*COMPARE[:4], "precious.txt"), _NEEDS, named="precious.txt"),
    *(case(f"a run called {name!r}", ("compare", name, "--out", "page"), ("done",),
           partial(_copied, name), code=(0, 2))
      for name in ("=HYPERLINK(1)", "@SUM(1)", "\x1b[31mred", "<script>", "x\udcff", "$\\frac$",
                   "x\ny")),
]  # fmt: skip
