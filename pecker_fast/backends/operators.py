"""The backends as operators of torch, `torch.ops.pecker_fast`, for code that torch.compile traces.

One schema each, with what is changed in place, for every backend: which one runs is an argument, as
of `backends.select`. They compute what the functions of `reference` do, on the tensors that they
are given; the step itself is in `optim.traced`. Uncompiled code calls the backends without them,
since torch's dispatcher looks at every tensor of every list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pecker_fast import backends

__all__ = ["SCHEMAS", "define"]

SCHEMAS = {
    "gather_salient": (
        "(Tensor[] params, Tensor?[] indices, Tensor(a!)[] out, bool accumulate=False, "
        '*, str backend="auto") -> ()'
    ),
    "scatter_salient": (
        '(Tensor(a!)[] params, Tensor?[] indices, Tensor[] values, *, str backend="auto") -> ()'
    ),
    "swap_salient": (
        '(Tensor(a!)[] params, Tensor?[] indices, Tensor(b!)[] values, *, str backend="auto") -> ()'
    ),
    "norm_salient": '(Tensor[] values, *, str backend="auto") -> (Tensor, Tensor)',
    "ema_salient": (
        "(Tensor(a!)[] averages, Tensor[] params, Tensor?[] indices, float decay, "
        '*, str backend="auto") -> ()'
    ),
}


def _backends_own(function: str) -> Any:
    """An operator's work, by the backend's function of this name."""

    def call(tensors: list[Tensor], *args: Any, backend: str = "auto") -> Any:
        if tensors:
            return getattr(backends.select(backend, tensors[0].device), function)(tensors, *args)
        return None

    return call


_torch_library: Any = torch.library  # untyped in torch
_library = _torch_library.Library("pecker_fast", "DEF")


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What an operator returns that changes its arguments only."""


def define(
    name: str, schema: str, work: Callable[..., Any], fake: Callable[..., Any] = _nothing
) -> None:
    """Make an operator `torch.ops.pecker_fast.<name>`.

    Args:
        name: of the operator.
        schema: what it takes, changes and returns.
        work: what it does, on any device.
        fake: what it returns while it is traced.
    """
    _library.define(name + schema)
    _library.impl(name, work, "CompositeExplicitAutograd")
    _torch_library.register_fake(f"pecker_fast::{name}", fake, lib=_library)


def _fake_norm(values: list[Tensor], *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    first = values[0]
    return first.new_empty((), dtype=torch.float64), first.new_empty((), dtype=torch.float32)


for _name, _schema in SCHEMAS.items():
    if _name == "norm_salient":
        define(_name, _schema, _backends_own(_name), _fake_norm)
    else:
        define(_name, _schema, _backends_own(f"{_name}_"))
