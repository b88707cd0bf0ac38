"""Counts a step and computes the scalars of every parameter's update, on the device.

    step_size = lr / (1 - beta1^t)      bias_correction2_sqrt = sqrt(1 - beta2^t)

in float64, rounded once; t counts from the step at which the entries became salient. A tiny launch:
neither the step count nor the bias corrections ever visit the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from pecker_fast.kernels import tables as at
from pecker_fast.kernels.elements import OPTIONS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["advance"]

_ENTRIES_PER_BLOCK = 256


@triton.jit
def _power(base, exponent):
    """base^exponent for exponents >= 0 by multiplications alone: the same bits everywhere."""
    result = tl.full(base.shape, 1.0, tl.float64)
    while tl.max(exponent, axis=0) > 0:
        result = tl.where((exponent & 1) != 0, result * base, result)
        base = base * base
        exponent = exponent >> 1
    return result


@triton.jit
def _store_scalar(rows_ptr, row, column, value, is_double, valid):
    """Write one column of rows of 96 bytes, whose numbers are of the arithmetic's type."""
    single_ptr = rows_ptr.to(tl.pointer_type(tl.float32))
    tl.store(rows_ptr + row * at.ROW_DOUBLES + column, value, mask=valid & is_double)
    tl.store(
        single_ptr + row * at.ROW_FLOATS + column,
        value.to(tl.float32),
        mask=valid & (is_double == 0),
    )


@triton.jit(do_not_specialize=["count"])
def _advance_kernel(
    entries_ptr,
    grads_ptr,
    groups_ptr,
    starts_ptr,
    steps_ptr,
    rows_ptr,
    found_inf_ptr,
    count,
    BLOCK_SIZE: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    if found_inf_ptr is not None:
        count = tl.where(tl.load(found_inf_ptr) > 0, 0, count)
    valid = entry < count
    valid = valid & (tl.load(grads_ptr + entry, mask=valid, other=0) != 0)

    step = tl.load(steps_ptr + entry, mask=valid, other=0.0) + 1.0
    tl.store(steps_ptr + entry, step, mask=valid)

    entry_ptr = entries_ptr + entry * at.ENTRY_COLUMNS
    group = tl.load(entry_ptr + at.GROUP, mask=valid, other=0)
    group_ptr = groups_ptr + group * at.GROUP_COLUMNS
    first_row = tl.load(entry_ptr + at.ENTRY_FIRST_ROW, mask=valid, other=0)
    row_count = tl.load(entry_ptr + at.ROW_COUNT, mask=valid, other=0)
    is_double = tl.load(entry_ptr + at.IS_DOUBLE, mask=valid, other=0) != 0
    lr = tl.load(group_ptr + at.LR, mask=valid, other=0.0)
    beta1 = tl.load(group_ptr + at.BETA1, mask=valid, other=0.0)
    beta2 = tl.load(group_ptr + at.BETA2, mask=valid, other=0.0)
    eps = tl.load(group_ptr + at.EPS, mask=valid, other=0.0)
    weight_decay = tl.load(group_ptr + at.WEIGHT_DECAY, mask=valid, other=0.0)
    clip_value = tl.load(group_ptr + at.GROUP_CLIP_VALUE, mask=valid, other=0.0)
    sign = tl.load(group_ptr + at.GROUP_SIGN, mask=valid, other=0.0)
    amsgrad = tl.load(group_ptr + at.GROUP_AMSGRAD, mask=valid, other=0.0)
    exp_avg_weight = 1.0 - beta1

    i = 0
    while i < tl.max(row_count, axis=0):
        here = valid & (i < row_count)
        row = first_row + i
        t = (step - tl.load(starts_ptr + row, mask=here, other=0.0)).to(tl.int64)
        correction1 = 1.0 - _power(beta1, t)
        correction2 = 1.0 - _power(beta2, t)
        _store_scalar(rows_ptr, row, at.DECAY, 1.0 - lr * weight_decay, is_double, here)
        _store_scalar(rows_ptr, row, at.EXP_AVG_WEIGHT, exp_avg_weight, is_double, here)
        _store_scalar(rows_ptr, row, at.EXP_AVG_REST, 1.0 - exp_avg_weight, is_double, here)
        _store_scalar(rows_ptr, row, at.ROW_BETA2, beta2, is_double, here)
        _store_scalar(rows_ptr, row, at.EXP_AVG_SQ_WEIGHT, 1.0 - beta2, is_double, here)
        _store_scalar(rows_ptr, row, at.ROW_EPS, eps, is_double, here)
        _store_scalar(rows_ptr, row, at.STEP_SIZE, lr / correction1, is_double, here)
        _store_scalar(
            rows_ptr, row, at.BIAS_CORRECTION2_SQRT, tl.sqrt(correction2), is_double, here
        )
        _store_scalar(rows_ptr, row, at.CLIP_VALUE, clip_value, is_double, here)
        _store_scalar(rows_ptr, row, at.SIGN, sign, is_double, here)
        _store_scalar(rows_ptr, row, at.AMSGRAD, amsgrad, is_double, here)
        _store_scalar(rows_ptr, row, at.UNUSED, lr * 0.0, is_double, here)
        i += 1


def advance(
    entries: Tensor,
    grads: Tensor,
    groups: Tensor,
    starts: Tensor,
    steps: Tensor,
    rows: Tensor,
    found_inf: Tensor | None,
) -> None:
    """Count a step of every entry that has a gradient and write the scalars of its update.

    Args:
        entries: (n, 4) int64: group, first_row, row_count, is_double.
        grads: (n,) int64 addresses; 0 leaves the entry's count and rows alone.
        groups: (G, 8) float64: lr, beta1, beta2, eps, weight_decay, clip_value, sign, amsgrad.
        starts: (R,) float32: the step count at which the row's entries became salient.
        steps: (n,) float32 step counts, advanced in place.
        rows: (R, 12) float64 storage, written as 12 float32 or float64 a row.
        found_inf: () float32; if above 0, nothing is written.
    """
    count = len(entries)
    if count:
        _advance_kernel[(triton.cdiv(count, _ENTRIES_PER_BLOCK),)](
            entries,
            grads,
            groups,
            starts,
            steps,
            rows,
            found_inf,
            count,
            BLOCK_SIZE=_ENTRIES_PER_BLOCK,
            **OPTIONS,
        )
