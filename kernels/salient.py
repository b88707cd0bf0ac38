"""Copies between salient entries of dense tensors and compact vectors, and sums of squares.

    gather: compact = dense      gather_add: compact += dense      scatter: dense = compact
    swap: exchange               ema: compact = decay * compact + (1 - decay) * dense

Bytes per salient float32 entry: 4 (position) + 4 or 8 (dense, in whole touched sectors) + 4 or 8
(compact). Nothing here looks at the frozen entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from pecker_fast.kernels.elements import (
    OPTIONS,
    SLOTS_PER_BLOCK,
    STORED,
    load_as,
    offsets_of,
    pointer_to,
    store_as,
    valid_slots,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OPERATIONS", "salient", "salient_one", "sum_squares"]

OPERATIONS = ("gather", "gather_add", "scatter", "swap", "ema")


@triton.jit
def _copy(
    begin,
    nnz,
    dense,
    offsets,
    compact,
    weight,
    rest,
    OPERATION: tl.constexpr,
    DENSE_DTYPE: tl.constexpr,
    T: tl.constexpr,
    DENSE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One block. WHOLE and DENSE as in adamw.py: what is true of every slot of it."""
    slot = begin + tl.arange(0, BLOCK_SIZE)
    valid = valid_slots(slot, nnz, WHOLE)
    entry = slot if DENSE else offsets_of(offsets, slot, valid, WHOLE)
    dense_ptr = pointer_to(dense, DENSE_DTYPE, DENSE)
    compact_ptr = pointer_to(compact, T, WHOLE)

    if OPERATION == "scatter":
        store_as(dense_ptr, entry, load_as(compact_ptr, slot, valid, T), valid)
    else:
        value = load_as(dense_ptr, entry, valid, T)
        if OPERATION != "gather":
            old = load_as(compact_ptr, slot, valid, T)
        if OPERATION == "swap":
            store_as(dense_ptr, entry, old, valid)
        elif OPERATION == "gather_add":
            value = old + value
        elif OPERATION == "ema":  # torch.lerp picks the form that is exact at the nearer end
            difference = value - old
            weight = tl.full([BLOCK_SIZE], weight, tl.float64).to(T)
            rest = tl.full([BLOCK_SIZE], rest, tl.float64).to(T)
            near = old + weight * difference
            value = tl.where(weight < 0.5, near, value - difference * rest)
        store_as(compact_ptr, slot, value, valid)


@triton.jit
def _copy_block(
    chunk,
    nnz,
    dense,
    offsets,
    compact,
    weight,
    rest,
    OPERATION: tl.constexpr,
    DENSE_DTYPE: tl.constexpr,
    T: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Chunk `chunk` of one tensor, with accesses as wide as its addresses allow."""
    begin = chunk * BLOCK_SIZE
    whole = (begin + BLOCK_SIZE <= nnz) & ((offsets | compact) % 16 == 0)
    # fmt: off
    if whole & (offsets == 0) & (dense % 16 == 0):
        _copy(begin, nnz, dense, offsets, compact, weight, rest, OPERATION, DENSE_DTYPE, T,
              DENSE=True, WHOLE=True, BLOCK_SIZE=BLOCK_SIZE)
    elif whole:
        _copy(begin, nnz, dense, offsets, compact, weight, rest, OPERATION, DENSE_DTYPE, T,
              DENSE=False, WHOLE=True, BLOCK_SIZE=BLOCK_SIZE)
    else:
        _copy(begin, nnz, dense, offsets, compact, weight, rest, OPERATION, DENSE_DTYPE, T,
              DENSE=False, WHOLE=False, BLOCK_SIZE=BLOCK_SIZE)
    # fmt: on


@triton.jit
def _salient_kernel(
    tensors_ptr,
    blocks_ptr,
    weight: tl.float64,
    rest: tl.float64,
    OPERATION: tl.constexpr,
    DENSE_DTYPE: tl.constexpr,
    T: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    table = tensors_ptr + tl.load(blocks_ptr + 2 * block).to(tl.int64) * 4
    chunk = tl.load(blocks_ptr + 2 * block + 1).to(tl.int64)
    dense = tl.load(table)
    offsets = tl.load(table + 1)
    compact = tl.load(table + 2)
    nnz = tl.load(table + 3)
    # fmt: off
    _copy_block(chunk, nnz, dense, offsets, compact, weight, rest, OPERATION, DENSE_DTYPE, T,
                BLOCK_SIZE)
    # fmt: on


@triton.jit(do_not_specialize=["dense", "offsets", "compact", "nnz"])
def _salient_one_kernel(
    dense: tl.int64,
    offsets: tl.int64,
    compact: tl.int64,
    nnz: tl.int64,
    weight: tl.float64,
    rest: tl.float64,
    OPERATION: tl.constexpr,
    DENSE_DTYPE: tl.constexpr,
    T: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    # fmt: off
    _copy_block(chunk, nnz.to(tl.int64), dense.to(tl.int64), offsets.to(tl.int64),
                compact.to(tl.int64), weight, rest, OPERATION, DENSE_DTYPE, T, BLOCK_SIZE)
    # fmt: on


@triton.jit
def _sum_squares_kernel(
    tensors_ptr, blocks_ptr, partials_ptr, DTYPE: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64)
    table = tensors_ptr + tl.load(blocks_ptr + 2 * block).to(tl.int64) * 2
    slot = tl.load(blocks_ptr + 2 * block + 1).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    values_ptr = pointer_to(tl.load(table), DTYPE, False)
    value = load_as(values_ptr, slot, slot < tl.load(table + 1), tl.float64)
    tl.store(partials_ptr + block, tl.sum(value * value, axis=0))


def salient(
    operation: str,
    dense_dtype: torch.dtype,
    compact_dtype: torch.dtype,
    tensors: Tensor,
    blocks: Tensor,
    decay: float,
) -> None:
    """Apply one of OPERATIONS to every tensor of a table, in place.

    Args:
        operation: one of OPERATIONS.
        dense_dtype: float32, float64, bfloat16 or float16.
        compact_dtype: float32 or float64; to gather, scatter or swap also a half like the other.
        tensors: (n, 4) int64: dense, offsets (int32; 0: slot i is element i), compact, nnz.
        blocks: (B, 2) int32: row of `tensors`, chunk of SLOTS_PER_BLOCK slots.
        decay: of "ema", in [0, 1].
    """
    if len(blocks):
        weight = 1.0 - decay
        _salient_kernel[(len(blocks),)](
            tensors,
            blocks,
            weight,
            1.0 - weight,
            OPERATION=operation,
            **_types(dense_dtype, compact_dtype),
            BLOCK_SIZE=SLOTS_PER_BLOCK,
            **OPTIONS,
        )


def salient_one(
    operation: str, dense: Tensor, offsets: Tensor | None, compact: Tensor, decay: float
) -> None:
    """As `salient` for one tensor, without a table.

    Args:
        operation: one of OPERATIONS.
        dense: float32, float64, bfloat16 or float16; slot i is the element at `offsets[i]` after
            its first one, in storage order.
        offsets: (nnz,) int32; None: slot i is element i.
        compact: (nnz,) float32 or float64, or as for `salient`.
        decay: of "ema", in [0, 1].
    """
    nnz = compact.numel()
    if nnz:
        weight = 1.0 - decay
        _salient_one_kernel[(triton.cdiv(nnz, SLOTS_PER_BLOCK),)](
            dense.data_ptr(),
            0 if offsets is None else offsets.data_ptr(),
            compact.data_ptr(),
            nnz,
            weight,
            1.0 - weight,
            OPERATION=operation,
            **_types(dense.dtype, compact.dtype),
            BLOCK_SIZE=SLOTS_PER_BLOCK,
            **OPTIONS,
        )


def _types(dense: torch.dtype, compact: torch.dtype) -> dict[str, tl.dtype]:
    if dense == compact and dense.itemsize == 2:  # bits as they are
        return {"DENSE_DTYPE": tl.uint16, "T": tl.uint16}
    return {"DENSE_DTYPE": STORED[dense], "T": STORED[compact]}


def sum_squares(dtype: torch.dtype, tensors: Tensor, blocks: Tensor, partials: Tensor) -> None:
    """The sum of squares of every block, squared and summed in float64.

    Args:
        dtype: of the values: float32, float64, bfloat16 or float16.
        tensors: (n, 2) int64: address, nnz.
        blocks: (B, 2) int32: row of `tensors`, chunk of SLOTS_PER_BLOCK slots.
        partials: (B,) float64, written. The order of summation depends on nothing but the block.
    """
    if len(blocks):
        _sum_squares_kernel[(len(blocks),)](
            tensors,
            blocks,
            partials,
            DTYPE=STORED[dtype],
            BLOCK_SIZE=SLOTS_PER_BLOCK,
            **OPTIONS,
        )
