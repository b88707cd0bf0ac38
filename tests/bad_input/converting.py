"""`convert`: checkpoints that others wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bad_input.building import case, each
from bad_input.spoil import ANY_FILE, TENSORS, code_pickle, put

_LIST = ("convert", "ckpt.pth", "--out", "converted")
_WEIGHTS = ("convert", "weights.safetensors", "--out", "converted")

Weights = dict[str, torch.Tensor]


def _network(change: Callable[[Weights], object]) -> Callable[[Path], object]:
    """Change the weights of the network and of its average."""

    def spoil(file: Path) -> None:
        content = torch.load(file, weights_only=False)
        for network in (content[0], content[3]):
            change(network)
        torch.save(content, file)

    return spoil


def _all(change: Callable[[torch.Tensor], object]) -> Callable[[Path], object]:
    return _network(lambda weights: [weights.update({n: change(v)}) for n, v in weights.items()])


def _one(name: str, change: Callable[[torch.Tensor], object]) -> Callable[[Path], object]:
    def spoil(weights: Weights) -> None:
        found = next(full for full in weights if name in full)
        weights[found] = change(weights[found])  # type: ignore[assignment]

    return _network(spoil)


NETWORKS = {
    "one missing": _network(lambda w: w.pop(list(w)[5])),
    "one more": _network(lambda w: w.update({"other.weight": torch.zeros(3)})),
    "nan": _all(lambda v: v * float("nan")),
    "infinite": _one("weight", lambda v: v + float("inf")),
    "integers": _all(lambda v: v.long()),
    "booleans": _all(lambda v: v.bool()),
    "complex": _all(lambda v: v.to(torch.complex64)),
    "half": _all(lambda v: v[: len(v) // 2]),
    "no entries": _all(lambda v: v[:0]),
    "scalars": _all(lambda v: torch.tensor(1.0)),
    "sparse": _all(lambda v: v.to_sparse()),
    "quantized": _one("weight", lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)),
    "on meta": _all(lambda v: v.to("meta")),
    "text": _all(lambda v: "text"),
    "none": _all(lambda v: None),
    "a billion classes": _one("cond_embed", lambda v: torch.zeros(()).expand(10**9, v.shape[-1])),
    "expanded": _one("weight", lambda v: torch.zeros(()).expand(2**30, 2**10)),
    "no channels": _one("conv_in.weight", lambda v: v[:0]),
    "one dimension": _one("conv_in.weight", lambda v: v.flatten()),
    "shared storage": _network(lambda w: w.update({n: next(iter(w.values())) for n in w})),
    "names with escape": _network(
        lambda w: [w.update({f"\x1b[31m{n}": w.pop(n)}) for n in list(w)]
    ),
    "names as numbers": _network(
        lambda w: [w.update({i: w.pop(n)}) for i, n in enumerate(list(w))]  # type: ignore[misc]
    ),
    "another network": _network(lambda w: (w.clear(), w.update(a=torch.zeros(3, 3)))),
    "nothing": _network(lambda w: w.clear()),
    "a deep name": _network(lambda w: w.update({".".join("a" * 5000): torch.zeros(1)})),
    "a level that is a number": _network(lambda w: w.update({"downs.99999999.x": torch.zeros(1)})),
}
CONTENTS: dict[str, Any] = {
    "number": 3, "text": "wizard", "none": None, "empty list": [], "empty object": {},
    "list of numbers": [1, 2, 3], "list of one": [{}], "tensor": torch.zeros(3),
    "nested": [[[[{}]]]], "object of text": {"model": "x", "ema": "y"},
    "object of lists": {"model": [torch.zeros(2)]}, "step is text": [{}, {}, "many", {}],
    "numbers as keys": {1: torch.zeros(3)}, "tuple": (1, 2),
}  # fmt: skip


def _of_itself(folder: Path) -> None:
    content: list[Any] = []
    content.append(content)
    torch.save(content, folder / "ckpt.pth")


def _saved_as(protocol: int, legacy: bool, folder: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("harm",)

    torch.save(
        {"model": Code()}, folder / "ckpt.pth",
        pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip


def _module(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "ckpt.pth")


_NEEDS = ("ckpt.pth",)

CASES = [
    *each("list", ANY_FILE, "ckpt.pth", _LIST, _NEEDS, named="ckpt.pth"),
    *each("network", NETWORKS, "ckpt.pth", _LIST, _NEEDS, named="ckpt.pth"),
    *each("weights", ANY_FILE | TENSORS, "weights.safetensors", _WEIGHTS,
          ("weights.safetensors",), named="weights.safetensors"),
    *(case(f"content: {name}", _LIST, (), partial(lambda c, f: torch.save(c, f / "ckpt.pth"), c),
           named="ckpt.pth")
      for name, c in CONTENTS.items()),
    case("content: lists of themselves", _LIST, (), _of_itself, named="ckpt.pth"),
    *(case(f"code, protocol {protocol}{', legacy' * legacy}", _LIST, (),
           partial(_saved_as, protocol, legacy), named="ckpt.pth")
      for protocol in (2, 5) for legacy in (False, True)),
    case("a whole module", _LIST, (), _module, named="ckpt.pth"),
    case("a pickle of code", _LIST, (), lambda f: put(code_pickle())(f / "ckpt.pth"),
         named="ckpt.pth"),
    case("TorchScript", ("convert", "judge.pt", "--out", "converted"), ("judge.pt",),
         named="judge.pt"),
    case("nowhere", ("convert", "nowhere.pth", "--out", "converted"), named="nowhere.pth"),
    case("a folder", ("convert", "model", "--out", "converted"), ("model",), named="model"),
    case("an empty name", ("convert", "", "--out", "converted")),
    *(case(f"{name} of classes", (*_LIST, "--classes", text), _NEEDS, named="--classes")
      for name, text in {
          "two names": "a,b", "twice": "a,a,b", "empty names": "a,,b", "no name": "",
          "blanks": " , , ", "escape": "\x1b[31ma,b", "another data set": "stl10",
          "100,000 names": ",".join(map(str, range(100_000))),
      }.items()),
    case("names with escape", (*_LIST, "--classes", "\x1b[31mx,b,c"), _NEEDS, code=(0, 2)),
    *(case(f"size {size}", (*_LIST, "--size", size), _NEEDS)
      for size in ("0", "-1", "1", "7", "10000000", "9" * 30, "nan", "")),
    case("slot that it has not", (*_LIST, "--slot", "generator"), _NEEDS, named="generator"),
]  # fmt: skip
