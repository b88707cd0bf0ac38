"""The C++ kernels of csrc/cpu, behind the reference's signatures.

Threads: as many as `torch.get_num_threads()` says at each call. The instruction set is the best
of the CPU; PECKER_FAST_ISA=avx512|avx2|scalar picks another. All give the same bits. The kernels
share torch's OpenMP threads: beside other busy processes set OMP_WAIT_POLICY=PASSIVE, so that idle
threads do not spin.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from pecker_fast import _C
from pecker_fast.backends import reference
from pecker_fast.backends.fitting import (
    check_shapes,
    last_positions,
    same_order,
    slot_offsets,
    state_fits,
)
from pecker_fast.backends.kernels import Operation
from pecker_fast.backends.reference import norm_salient, select_groups
from pecker_fast.backends.salient import Row, SalientOperations
from pecker_fast.backends.topk import name_of, nan_error, prepare_scores
from pecker_fast.backends.work import Entry, Hyperparameters, Layouts, advance, look, update_rows
from pecker_fast.errors import PeckerError

__all__ = [
    "STEPS_ON_DEVICE",
    "CpuWork",
    "ema_salient_",
    "gather_salient_",
    "instruction_set",
    "masked_adamw_",
    "norm_salient",
    "prepare",
    "scatter_salient_",
    "select_groups",
    "select_topk",
    "swap_salient_",
]

STEPS_ON_DEVICE = False

# Codes of csrc/cpu/adamw.h.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Columns of struct AdamWTensor there.
_PARAM, _GRAD, _PARAM_OFFSETS, _GRAD_OFFSETS = 0, 1, 2, 3
_FIRST_ROW, _PARAM_DTYPE, _GRAD_DTYPE, _COLUMNS = 9, 11, 12, 13

# Shape, strides and dtype of a parameter and of its gradient: what a table row was made for.
_Layout = tuple[object, ...]


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "scalar".

    Raises:
        PeckerError: PECKER_FAST_ISA names one that this CPU does not have.
    """
    known = _C.instruction_sets()
    chosen = os.environ.get("PECKER_FAST_ISA", known[0])
    if chosen not in known:
        raise PeckerError(
            f"PECKER_FAST_ISA is {chosen!r}: expected one of {', '.join(known)} on this CPU"
        )
    return chosen


@dataclass
class CpuWork:
    """Entries and the table that the kernel reads: a row of pointers and sizes for each."""

    entries: tuple[Entry, ...]
    steps: Tensor
    compact_grads: bool
    params: list[Tensor]  # of the entries
    sizes: list[int]  # how many entries of each are salient
    table: np.ndarray  # (len(entries), 13) int64, struct AdamWTensor
    layouts: list[_Layout | None]  # None: the row has not been made yet
    offsets: list[tuple[Tensor | None, Tensor | None]]  # what the rows point to, kept alive
    # Entries the kernel cannot take as they are: "reference" does the whole update in torch,
    # "copy" brings the gradient to the parameter's strides at every step.
    detours: dict[int, Literal["reference", "copy"]] = field(default_factory=dict)
    seen: Layouts | None = None  # of parameters and gradients, when all rows were right
    captured: ClassVar[bool] = False


def prepare(entries: Sequence[Entry], steps: Tensor, compact_grads: bool = False) -> CpuWork:
    """As `reference.prepare`; rows are completed when the first gradients are seen."""
    rows = []
    for entry in entries:
        state = (
            entry.exp_avg,
            entry.exp_avg_sq,
            entry.max_exp_avg_sq,
            entry.master,
            entry.start_class,
        )
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in state]
        rows.append([0, 0, 0, 0, *pointers, 0, entry.nnz, 0, 0])
    count = len(rows)
    return CpuWork(
        entries=tuple(entries),
        steps=steps,
        compact_grads=compact_grads,
        params=[entry.param for entry in entries],
        sizes=[entry.nnz for entry in entries],
        table=np.array(rows, np.int64).reshape(count, _COLUMNS),
        layouts=[None] * count,
        offsets=[(None, None)] * count,
    )


def masked_adamw_(
    work: CpuWork,
    grads: Sequence[Tensor | None],
    groups: Sequence[Hyperparameters],
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """As `reference.masked_adamw_`, in one call for all tensors."""
    if found_inf is not None and found_inf.item() > 0:
        return
    addresses, layouts = look([*work.params, *grads])
    if layouts != work.seen:
        _refresh_rows(work, grads)
        work.seen = layouts
    counts = advance(work.steps, grads)
    rows, first_rows = update_rows(work.entries, grads, counts, groups)
    work.table[:, [_PARAM, _GRAD]] = addresses.reshape(2, -1).T
    work.table[:, _FIRST_ROW] = first_rows
    copies = _copies(work, grads)
    for i in work.detours:
        work.table[i, _GRAD] = copies[i].data_ptr() if i in copies else 0
    row_table = np.array(rows, np.float64)
    _C.masked_adamw(
        work.table.ctypes.data,
        len(work.entries),
        row_table.ctypes.data,
        0.0 if grad_scale is None else float(grad_scale),
        torch.get_num_threads(),
        instruction_set(),
    )
    moved = zip(work.params, grads, work.sizes, strict=True)
    increment_version([param for param, grad, size in moved if grad is not None and size])

    for i, detour in work.detours.items():
        grad = grads[i]
        if grad is None:
            continue
        if detour == "reference":
            entry, first = work.entries[i], first_rows[i]
            entry_rows = rows[first : first + len(entry.starts)]
            reference.update_entry_(entry, grad, entry_rows, work.compact_grads, grad_scale)
        elif grad_scale is not None:
            grad.copy_(copies[i])


def _refresh_rows(work: CpuWork, grads: Sequence[Tensor | None]) -> None:
    """Make the rows whose layout is new."""
    for i, (entry, grad) in enumerate(zip(work.entries, grads, strict=True)):
        if grad is not None:
            p = entry.param
            layout = (p.shape, p.stride(), p.dtype, grad.shape, grad.stride(), grad.dtype)
            if layout != work.layouts[i]:
                _make_row(work, i, grad)
                work.layouts[i] = layout


def _copies(work: CpuWork, grads: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """The gradients that the kernel cannot read as they lie, in their parameter's order."""
    return {
        i: torch.empty_like(work.entries[i].param, dtype=grad.dtype).copy_(grad)
        for i, detour in work.detours.items()
        if detour == "copy" and (grad := grads[i]) is not None
    }


def _make_row(work: CpuWork, i: int, grad: Tensor) -> None:
    """Fill in what depends on the layouts of a parameter and its gradient."""
    entry = work.entries[i]
    param = entry.param
    check_shapes(entry, grad, work.compact_grads, *last_positions([entry]))
    work.detours.pop(i, None)
    param_offsets = slot_offsets(entry.indices, param)
    grad_offsets = None if work.compact_grads else slot_offsets(entry.indices, grad)
    work.offsets[i] = (param_offsets, grad_offsets)
    if (
        param.dtype not in _DTYPES
        or grad.dtype not in _DTYPES
        or any(o is not None and o.dtype != torch.int32 for o in work.offsets[i])
        or not state_fits(entry)
    ):
        work.detours[i] = "reference"
    elif entry.indices is None and not same_order(grad, param):
        work.detours[i] = "copy"
    row = work.table[i]
    row[_PARAM_OFFSETS] = 0 if param_offsets is None else param_offsets.data_ptr()
    row[_GRAD_OFFSETS] = 0 if grad_offsets is None else grad_offsets.data_ptr()
    row[_PARAM_DTYPE] = _DTYPES.get(param.dtype, 0)
    row[_GRAD_DTYPE] = _DTYPES.get(grad.dtype, 0)


class _Operations(SalientOperations):
    """Copies by csrc/cpu/salient.cpp."""

    def _launch(self, operation: Operation, rows: list[Row], decay: float) -> None:
        table = [
            [
                row.dense.data_ptr(),
                0 if row.offsets is None else row.offsets.data_ptr(),
                row.compact.data_ptr(),
                row.compact.numel(),
                _DTYPES[row.dense.dtype],
                _DTYPES[row.compact.dtype],
            ]
            for row in rows
        ]
        pointers = torch.tensor(table, dtype=torch.int64)
        _C.salient(pointers.data_ptr(), len(rows), operation, decay, torch.get_num_threads())


_operations = _Operations()
gather_salient_ = _operations.gather_salient_
scatter_salient_ = _operations.scatter_salient_
swap_salient_ = _operations.swap_salient_
ema_salient_ = _operations.ema_salient_


def select_topk(
    scores: Sequence[Tensor], k: int, names: Sequence[str] | None = None
) -> list[Tensor]:
    """Positions of the k largest scores by radix selection; arguments as in the reference.

    Contiguous float32 and float64 scores are read in place: nothing is concatenated, and beside
    the result it takes less than 1 MiB plus 50 KiB per thread for a thousand million scores.
    """
    flat = prepare_scores(scores, k, names)
    if flat[0].device.type != "cpu":
        raise PeckerError(
            f"select_topk: the cpu backend reads CPU tensors, got {name_of(0, names)} on "
            f"{flat[0].device}; use the reference backend"
        )
    plan = _C.TopkPlan(
        [tensor.data_ptr() for tensor in flat],
        [tensor.numel() for tensor in flat],
        k,
        double_scores=flat[0].dtype == torch.float64,
        threads=torch.get_num_threads(),
    )
    if plan.nan_tensor >= 0:
        raise nan_error(plan.nan_tensor, names)
    positions = [torch.empty(n, dtype=torch.int32, device="cpu") for n in plan.counts]
    plan.write([tensor.data_ptr() for tensor in positions])
    return positions
