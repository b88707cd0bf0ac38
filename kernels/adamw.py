"""The masked AdamW step: one launch for all tensors and groups that share dtypes.

    p *= 1 - lr * weight_decay
    exp_avg    += (1 - beta1) * (g - exp_avg)                    (exp_avg is g when beta1 = 0)
    exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g * g
    p -= lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)

Bytes per salient float32 entry: 4 (position) + 12 (p twice, g; in whole touched sectors) + 16 (two
moments). It synchronizes nothing, uses no atomics, and chooses no hyperparameter at compile time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from pecker_fast.kernels import tables as at
from pecker_fast.kernels.elements import (
    OPTIONS,
    SLOTS_PER_BLOCK,
    STORED,
    load_as,
    offsets_of,
    pointer_to,
    present,
    round_trip,
    store_as,
    valid_slots,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["masked_adamw"]

# Registers a thread may use, by (extras, grad_scale given); twice as many for float64. Left to
# itself, ptxas spills a little in some variants. With 64 (80), 4 (3) blocks fit a multiprocessor.
_REGISTERS = {(False, False): 64, (True, False): 80, (False, True): 128, (True, True): 192}


@triton.jit
def _divide(a, b, T: tl.constexpr):
    """IEEE division."""
    return tl.div_rn(a, b) if T == tl.float32 else a / b


@triton.jit
def _square_root(value, T: tl.constexpr):
    """IEEE square root."""
    return tl.sqrt_rn(value) if T == tl.float32 else tl.sqrt(value)


@triton.jit
def _update(
    begin,
    nnz,
    param,
    param_offsets,
    grad,
    grad_offsets,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    master,
    start_class,
    row_ptr,
    grad_scale_ptr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    T: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    EXTRAS: tl.constexpr,
    DENSE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """The update of slots begin .. begin + BLOCK_SIZE - 1. Address 0 is an absent tensor.

    EXTRAS: max_exp_avg_sq, master and start_class may be present. WHOLE: all slots exist and state
    and offsets are 16-byte aligned. DENSE: WHOLE, slot i is element i, and parameter and gradient
    are 16-byte aligned too.
    """
    MASTERS: tl.constexpr = EXTRAS and (PARAM == tl.int16 or PARAM == tl.float16)
    slot = begin + tl.arange(0, BLOCK_SIZE)
    valid = valid_slots(slot, nnz, WHOLE)
    if DENSE:
        param_entry = slot
        grad_entry = slot
    else:
        param_entry = offsets_of(param_offsets, slot, valid, WHOLE)
        grad_entry = offsets_of(grad_offsets, slot, valid, WHOLE)
    param_ptr = pointer_to(param, PARAM, DENSE)
    grad_ptr = pointer_to(grad, GRAD, DENSE)
    exp_avg_ptr = pointer_to(exp_avg, T, WHOLE)
    exp_avg_sq_ptr = pointer_to(exp_avg_sq, T, WHOLE)

    decay = tl.load(row_ptr + at.DECAY)
    exp_avg_weight = tl.full([BLOCK_SIZE], tl.load(row_ptr + at.EXP_AVG_WEIGHT), T)
    exp_avg_rest = tl.load(row_ptr + at.EXP_AVG_REST)
    beta2 = tl.load(row_ptr + at.ROW_BETA2)
    exp_avg_sq_weight = tl.load(row_ptr + at.EXP_AVG_SQ_WEIGHT)
    eps = tl.load(row_ptr + at.ROW_EPS)
    step_size = tl.full([BLOCK_SIZE], tl.load(row_ptr + at.STEP_SIZE), T)
    bias_correction2_sqrt = tl.full([BLOCK_SIZE], tl.load(row_ptr + at.BIAS_CORRECTION2_SQRT), T)
    clip_value = tl.load(row_ptr + at.CLIP_VALUE)
    sign = tl.load(row_ptr + at.SIGN)
    if EXTRAS:
        if start_class != 0:  # entries that joined later have corrections of their own
            start_class_ptr = pointer_to(start_class, tl.int32, WHOLE)
            row = tl.load(start_class_ptr + slot, mask=valid, other=0).to(tl.int64) * ROW_STRIDE
            step_size = tl.load(row_ptr + row + at.STEP_SIZE)
            bias_correction2_sqrt = tl.load(row_ptr + row + at.BIAS_CORRECTION2_SQRT)

    # The state first: its addresses do not wait for the offsets.
    has_exp_avg = valid & present(exp_avg, slot)
    first = load_as(exp_avg_ptr, slot, has_exp_avg, T)
    second = load_as(exp_avg_sq_ptr, slot, valid, T)
    p = load_as(param_ptr, param_entry, valid, T)
    g = load_as(grad_ptr, grad_entry, valid, T)

    if grad_scale_ptr is not None:
        g = _divide(g, tl.load(grad_scale_ptr).to(T), T)
        store_as(grad_ptr, grad_entry, g, valid)
    g = tl.where(g < clip_value * -1.0, clip_value * -1.0, tl.where(g > clip_value, clip_value, g))
    g = g * sign

    if MASTERS:
        # A parameter that is not its rounded master was changed from outside: start from it again.
        has_master = valid & present(master, slot)
        master_ptr = pointer_to(master, tl.float32, WHOLE)
        precise = load_as(master_ptr, slot, has_master, T)
        p = tl.where(has_master & (round_trip(precise, PARAM) == p), precise, p)

    # torch.lerp picks the form that is exact at the nearer end.
    difference = g - first
    near = first + exp_avg_weight * difference
    first = tl.where(exp_avg_weight < 0.5, near, g - difference * exp_avg_rest)
    first = tl.where(has_exp_avg, first, g)
    second = second * beta2 + exp_avg_sq_weight * g * g
    store_as(exp_avg_ptr, slot, first, has_exp_avg)
    store_as(exp_avg_sq_ptr, slot, second, valid)
    if EXTRAS:
        amsgrad = valid & (tl.full([BLOCK_SIZE], tl.load(row_ptr + at.AMSGRAD), T) != 0.0)
        largest_ptr = pointer_to(max_exp_avg_sq, T, WHOLE)
        largest = load_as(largest_ptr, slot, amsgrad, T)
        largest = tl.where((second > largest) | (second != second), second, largest)  # NaN wins
        store_as(largest_ptr, slot, largest, amsgrad)
        second = tl.where(amsgrad, largest, second)
    denom = _divide(_square_root(second, T), bias_correction2_sqrt, T) + eps
    p = p * decay - _divide(step_size * first, denom, T)
    if MASTERS:
        store_as(master_ptr, slot, p, has_master)
    store_as(param_ptr, param_entry, p, valid)


@triton.jit
def _masked_adamw_kernel(
    tensors_ptr,
    grads_ptr,
    rows_ptr,
    blocks_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    EXTRAS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    T: tl.constexpr = tl.float64 if PARAM == tl.float64 else tl.float32
    ROW_STRIDE: tl.constexpr = at.ROW_DOUBLES if PARAM == tl.float64 else at.ROW_FLOATS
    block = tl.program_id(0).to(tl.int64)
    tensor = tl.load(blocks_ptr + 2 * block).to(tl.int64)
    begin = tl.load(blocks_ptr + 2 * block + 1).to(tl.int64) * BLOCK_SIZE
    grad = tl.load(grads_ptr + tensor)
    if found_inf_ptr is not None:
        grad = tl.where(tl.load(found_inf_ptr) > 0, 0, grad)
    if grad != 0:
        table = tensors_ptr + tensor * at.TENSOR_COLUMNS
        param = tl.load(table + at.PARAM_ADDRESS)
        param_offsets = tl.load(table + at.PARAM_OFFSETS)
        grad_offsets = tl.load(table + at.GRAD_OFFSETS)
        exp_avg = tl.load(table + at.EXP_AVG)
        exp_avg_sq = tl.load(table + at.EXP_AVG_SQ)
        max_exp_avg_sq = tl.load(table + at.MAX_EXP_AVG_SQ)
        master = tl.load(table + at.MASTER)
        start_class = tl.load(table + at.START_CLASS)
        row_ptr = (
            rows_ptr.to(tl.pointer_type(T)) + tl.load(table + at.TENSOR_FIRST_ROW) * ROW_STRIDE
        )
        nnz = tl.load(table + at.NNZ)

        offsets = param_offsets | grad_offsets
        slots = offsets | exp_avg | exp_avg_sq | max_exp_avg_sq | master | start_class
        whole = (begin + BLOCK_SIZE <= nnz) & (slots % 16 == 0)
        if whole & (offsets == 0) & ((param | grad) % 16 == 0):
            _update(
                begin, nnz, param, param_offsets, grad, grad_offsets, exp_avg, exp_avg_sq,
                max_exp_avg_sq, master, start_class, row_ptr, grad_scale_ptr, PARAM, GRAD, T,
                ROW_STRIDE, EXTRAS, DENSE=True, WHOLE=True, BLOCK_SIZE=BLOCK_SIZE,
            )  # fmt: skip
        elif whole:
            _update(
                begin, nnz, param, param_offsets, grad, grad_offsets, exp_avg, exp_avg_sq,
                max_exp_avg_sq, master, start_class, row_ptr, grad_scale_ptr, PARAM, GRAD, T,
                ROW_STRIDE, EXTRAS, DENSE=False, WHOLE=True, BLOCK_SIZE=BLOCK_SIZE,
            )  # fmt: skip
        else:
            _update(
                begin, nnz, param, param_offsets, grad, grad_offsets, exp_avg, exp_avg_sq,
                max_exp_avg_sq, master, start_class, row_ptr, grad_scale_ptr, PARAM, GRAD, T,
                ROW_STRIDE, EXTRAS, DENSE=False, WHOLE=False, BLOCK_SIZE=BLOCK_SIZE,
            )  # fmt: skip


def masked_adamw(
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    extras: bool,
    tensors: Tensor,
    grads: Tensor,
    rows: Tensor,
    blocks: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One AdamW step on the salient entries of all tensors with these dtypes, in place.

    Args:
        param_dtype: float32, float64, bfloat16 or float16.
        grad_dtype: the parameters', float32 for low-precision parameters, or low for float32 ones.
        extras: some tensor has a max_exp_avg_sq, a master or start classes.
        tensors: (n, 10) int64: param, param_offsets, grad_offsets, exp_avg, exp_avg_sq,
            max_exp_avg_sq, master, start_class (addresses, 0: absent), first_row, nnz.
        grads: (n,) int64 addresses; 0 leaves the tensor alone.
        rows: (R, 12) float64 storage, from `advance`.
        blocks: (B, 2) int32: row of `tensors`, chunk of SLOTS_PER_BLOCK slots.
        grad_scale: () float32; gradients are divided by it and written back where they are read.
        found_inf: () float32; if above 0, nothing is touched.
    """
    if len(blocks):
        registers = _REGISTERS[extras, grad_scale is not None]
        if param_dtype == torch.float64:
            registers = min(2 * registers, 255)
        _masked_adamw_kernel[(len(blocks),)](
            tensors,
            grads,
            rows,
            blocks,
            grad_scale,
            found_inf,
            PARAM=STORED[param_dtype],
            GRAD=STORED[grad_dtype],
            EXTRAS=extras,
            BLOCK_SIZE=SLOTS_PER_BLOCK,
            maxnreg=registers,
            **OPTIONS,
        )
