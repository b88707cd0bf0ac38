"""The backends as operators of torch, `torch.ops.pecker_fast`, for code that torch.compile traces.

One schema each, with what is changed in place, for every backend: which one runs is an argument, as
of `backends.select`. They compute what the functions of `reference` do, on the tensors that they
are given. Uncompiled code calls the backends without them, since torch's dispatcher looks at every
tensor of every list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pecker_fast import backends
from pecker_fast.backends.work import Entry, Hyperparameters, Work, start_classes

__all__ = ["KEPT", "NUMBERS", "SCHEMAS", "TENSORS", "flat_hyperparameters"]

SCHEMAS = {
    # Lists have one item for each parameter, all of which have gradients; `exp_avgs`,
    # `max_exp_avg_sqs` and `masters` only for those that keep one, as `kept` says: 1, 2 and 4 added
    # up. (Torch cannot trace None among tensors that are changed.) `groups` numbers a parameter's
    # hyperparameters: NUMBERS of `numbers` and TENSORS of `tensors` each. `entry_starts` are the
    # step counts at which entries became salient (int32), None: all of them at 0.
    "masked_adamw": (
        "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
        "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] masters, "
        "Tensor?[] entry_starts, Tensor(g!)[] steps, Tensor?[] indices, int[] kept, int[] groups, "
        "float[] numbers, Tensor?[] tensors, Tensor? grad_scale, Tensor? found_inf, "
        '*, str backend="auto") -> ()'
    ),
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

# Of a group: lr, beta1, beta2, eps, weight_decay, clip_value (-1: none), maximize, amsgrad; and the
# first three as tensors, where they are.
NUMBERS, TENSORS = 8, 3
KEPT = (1, 2, 4)


def flat_hyperparameters(group: dict[str, Any]) -> tuple[list[float], list[Tensor | None]]:
    """A parameter group's `numbers` and `tensors`, without reading a tensor's value."""
    tensors: list[Tensor | None] = []
    numbers: list[float] = []
    for value in (group["lr"], *group["betas"]):
        is_tensor = isinstance(value, Tensor)
        tensors.append(value if is_tensor else None)
        numbers.append(0.0 if is_tensor else float(value))
    numbers += [
        float(group["eps"]),
        float(group["weight_decay"]),
        -1.0 if group["clip_value"] is None else float(group["clip_value"]),
        1.0 if group["maximize"] else 0.0,
        1.0 if group["amsgrad"] else 0.0,
    ]
    return numbers, tensors


def _hyperparameters(
    numbers: Sequence[float], tensors: Sequence[Tensor | None]
) -> list[Hyperparameters]:
    found = []
    for i in range(len(numbers) // NUMBERS):
        row = numbers[i * NUMBERS : (i + 1) * NUMBERS]
        given = tensors[i * TENSORS : (i + 1) * TENSORS]
        lr, beta1, beta2 = (
            number if tensor is None else tensor for number, tensor in zip(row, given, strict=False)
        )
        group = {
            "lr": lr,
            "betas": (beta1, beta2),
            "eps": row[3],
            "weight_decay": row[4],
            "clip_value": None if row[5] < 0 else row[5],
            "maximize": row[6] > 0,
            "amsgrad": row[7] > 0,
        }
        found.append(Hyperparameters.of(group))
    return found


# ---- the step


@dataclass(frozen=True)
class _Tables:
    """What a backend prepared for tensors at these places."""

    places: list[object]
    work: Work


# First second moment of a call -> what was prepared for it: made anew where tensors lie elsewhere,
# gone when the optimizer's state is gone.
_known: Any = WeakTensorKeyDictionary()  # untyped in torch


def _masked_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    entry_starts: list[Tensor | None],
    steps: list[Tensor],
    indices: list[Tensor | None],
    kept: list[int],
    groups: list[int],
    numbers: list[float],
    tensors: list[Tensor | None],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    *,
    backend: str = "auto",
) -> None:
    optional = [
        [next(tensors_of_kind) if bits & kind else None for bits in kept]
        for kind, tensors_of_kind in zip(
            KEPT, map(iter, (exp_avgs, max_exp_avg_sqs, masters)), strict=True
        )
    ]
    lists = (optional[0], exp_avg_sqs, optional[1], optional[2], entry_starts, indices)
    hypers = _hyperparameters(numbers, tensors)
    for device in {param.device: None for param in params}:
        mine = [i for i, param in enumerate(params) if param.device == device]
        module = backends.select(backend, device)
        own_steps = [steps[i] for i in mine]
        counts = torch.stack(own_steps).float()
        if module.STEPS_ON_DEVICE:
            counts = counts.to(device)
        columns = [[column[i] for i in mine] for column in lists]
        places = [
            module,
            *(groups[i] for i in mine),
            *(value for i in mine for value in _place(params[i])),
            *(None if t is None else t.data_ptr() for column in columns for t in column),
        ]
        first = exp_avg_sqs[mine[0]]
        tables = _known.get(first)
        if tables is None or tables.places != places:
            entries = [
                # Not the parameters and moments themselves: a key of `_known` must not keep itself.
                Entry(f"params[{i}]", params[i].detach(), groups[i], index, m, v.detach(), v_max,
                      master, *start_classes(start))
                for i, m, v, v_max, master, start, index in zip(mine, *columns, strict=True)
            ]  # fmt: skip
            tables = _Tables(places, module.prepare(entries, counts.clone()))
            _known[first] = tables
        tables.work.steps.copy_(counts)
        module.masked_adamw_(tables.work, [grads[i] for i in mine], hypers, grad_scale, found_inf)
        torch._foreach_copy_(own_steps, list(tables.work.steps.unbind()))


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


# ---- registration


def _backends_own(function: str) -> Any:
    """An operator's work, by the backend's function of this name."""

    def call(tensors: list[Tensor], *args: Any, backend: str = "auto") -> Any:
        if tensors:
            return getattr(backends.select(backend, tensors[0].device), function)(tensors, *args)
        return None

    return call


_torch_library: Any = torch.library  # untyped in torch
_library = _torch_library.Library("pecker_fast", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _function = _name if _name == "norm_salient" else f"{_name}_"
    _work = _masked_adamw if _name == "masked_adamw" else _backends_own(_function)
    _library.impl(_name, _work, "CompositeExplicitAutograd")


def _fake_norm(values: list[Tensor], *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    first = values[0]
    return first.new_empty((), dtype=torch.float64), first.new_empty((), dtype=torch.float32)


for _name in SCHEMAS:
    _fake = _fake_norm if _name == "norm_salient" else lambda *args, **kwargs: None
    _torch_library.register_fake(f"pecker_fast::{_name}", _fake, lib=_library)
