"""What the optimizer hands a backend: entries, hyperparameters and the scalars made of them.

And `look`, which tells at every step where its tensors lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "PARAM_DTYPES",
    "Entry",
    "Hyperparameters",
    "Layouts",
    "UpdateRow",
    "Work",
    "advance",
    "look",
    "start_classes",
    "update_rows",
]

PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What is equal where dtypes, shapes and strides of a list of tensors are.
Layouts: TypeAlias = bytes | list[object]

_EXCHANGE: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)  # torch 2.10 and newer
try:
    from pecker_fast._C import layouts as _layouts
except ImportError:  # not built
    _EXCHANGE = None


@dataclass(frozen=True)
class Entry:
    """One parameter and its state. nnz is the number of its salient entries.

    With `indices`, every state tensor has shape (nnz,) and slot i belongs to the entry at position
    `indices[i]`. Without, every entry is salient and the state has the parameter's shape.
    """

    name: str  # for messages
    param: Tensor  # float32, float64, bfloat16 or float16, any strides
    group: int  # which of the step's Hyperparameters apply
    indices: Tensor | None  # (nnz,) int32, sorted flat positions in C order of param's shape
    exp_avg: Tensor | None  # float32, float64 for a float64 parameter; None when beta1 is 0
    exp_avg_sq: Tensor  # as exp_avg
    max_exp_avg_sq: Tensor | None  # as exp_avg; amsgrad only
    master: Tensor | None  # float32; low-precision parameters only
    starts: tuple[int, ...] = (0,)  # the parameter's step counts at which entries became salient
    start_class: Tensor | None = None  # (nnz,) int32 into `starts`; None: all of class 0

    @property
    def nnz(self) -> int:
        """How many entries are salient."""
        return self.exp_avg_sq.numel()


@dataclass(frozen=True)
class Hyperparameters:
    """One parameter group's hyperparameters in one step."""

    lr: float | Tensor  # a tensor only where it is on a device: reading it would wait
    beta1: float | Tensor  # likewise
    beta2: float | Tensor
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    clip_value: float | None

    @classmethod
    def of(cls, group: dict[str, Any]) -> Hyperparameters:
        """Read an optimizer's parameter group; lr and betas may be tensors."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        return cls(
            lr=lr if isinstance(lr, torch.Tensor) and lr.is_cuda else float(lr),
            beta1=beta1 if isinstance(beta1, torch.Tensor) and beta1.is_cuda else float(beta1),
            beta2=beta2 if isinstance(beta2, torch.Tensor) and beta2.is_cuda else float(beta2),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            amsgrad=bool(group["amsgrad"]),
            maximize=bool(group["maximize"]),
            clip_value=group["clip_value"],
        )


class Work(Protocol):
    """What `prepare` returns: the entries and whatever the backend derives from them once."""

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries, in the order given to `prepare`."""
        ...

    @property
    def steps(self) -> Tensor:
        """(len(entries),) float32, the step counts."""
        ...

    @property
    def captured(self) -> bool:
        """Whether a captured graph goes on reading what this holds."""
        ...


class UpdateRow(NamedTuple):
    """The scalars of one update, all computed once, on the host, in double."""

    decay: float  # 1 - lr * weight_decay
    exp_avg_weight: float  # 1 - beta1
    beta2: float
    exp_avg_sq_weight: float  # 1 - beta2
    eps: float
    step_size: float  # lr / (1 - beta1^step)
    bias_correction2_sqrt: float  # sqrt(1 - beta2^step)
    clip_value: float  # inf: no clipping
    sign: float  # -1 when maximizing
    amsgrad: float  # 1 or 0


def start_classes(entry_start: Tensor | None) -> tuple[tuple[int, ...], Tensor | None]:
    """`Entry.starts` and `Entry.start_class`, of (nnz,) int32 step counts; None: all of them 0."""
    if entry_start is None or not bool(entry_start.any()):
        return (0,), None
    distinct, inverse = torch.unique(entry_start, return_inverse=True)
    return tuple(distinct.tolist()), inverse.int()


def power(base: float, exponent: int) -> float:
    """Return base^exponent as torch.optim.AdamW takes it, by the C library's pow.

    Devices multiply (`power` in csrc/adamw_math.h), which is off by up to exponent * 2^-53.
    """
    return float(base**exponent)


def _update_row(hyper: Hyperparameters, step: float) -> UpdateRow:
    lr, beta1, beta2 = float(hyper.lr), float(hyper.beta1), float(hyper.beta2)
    return UpdateRow(
        decay=1 - lr * hyper.weight_decay,
        exp_avg_weight=1 - beta1,
        beta2=beta2,
        exp_avg_sq_weight=1 - beta2,
        eps=hyper.eps,
        step_size=lr / (1 - power(beta1, int(step))),
        bias_correction2_sqrt=math.sqrt(1 - power(beta2, int(step))),
        clip_value=math.inf if hyper.clip_value is None else hyper.clip_value,
        sign=-1.0 if hyper.maximize else 1.0,
        amsgrad=float(hyper.amsgrad),
    )


def advance(steps: Tensor, grads: Sequence[Tensor | None]) -> list[float]:
    """Count one more step for every parameter that has a gradient; return all counts."""
    missing = [i for i, grad in enumerate(grads) if grad is None]
    steps += 1
    if missing:
        steps[missing] -= 1
    counts: list[float] = steps.tolist()
    return counts


def update_rows(
    entries: Sequence[Entry],
    grads: Sequence[Tensor | None],
    counts: Sequence[float],
    groups: Sequence[Hyperparameters],
) -> tuple[list[UpdateRow], list[int]]:
    """The scalars of this step and where each entry finds its own.

    Entries of one group with equal step counts share rows, so there are few.

    Returns:
        The rows, and per entry the index of its first one (-1 without a gradient). Slot i of an
        entry uses row `first + start_class[i]`.
    """
    rows: list[UpdateRow] = []
    first_of: dict[tuple[int, float, tuple[int, ...]], int] = {}
    first_rows = []
    for entry, grad, count in zip(entries, grads, counts, strict=True):
        if grad is None:
            first_rows.append(-1)
            continue
        key = (entry.group, count, entry.starts)
        if key not in first_of:
            first_of[key] = len(rows)
            rows.extend(_update_row(groups[entry.group], count - start) for start in entry.starts)
        first_rows.append(first_of[key])
    return rows, first_rows


def look(tensors: Sequence[Tensor | None]) -> tuple[np.ndarray, Layouts]:
    """(n,) int64 addresses, 0 for None and for what has no elements; and the layouts.

    Raises:
        RuntimeError: a tensor is sparse.
    """
    numbers = None if _EXCHANGE is None else _layouts(list(tensors), _EXCHANGE)
    if numbers is None:
        return _look(tensors)
    return np.frombuffer(numbers, np.int64, len(tensors)), numbers[8 * len(tensors) :]


def _look(tensors: Sequence[Tensor | None]) -> tuple[np.ndarray, Layouts]:
    """The same in Python: for an older torch, and for tensors without values."""
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    found = [None if t is None else (t.dtype, t.shape, t.stride()) for t in tensors]
    return np.array(addresses, np.int64), list(found)
