"""What the top-k kernels share: the items of a tile as ordered integers, and their weights.

An item is a score, or a group of `length` consecutive scores ranked by its mean. A tensor's row of
the table: address, items, numel, length. A tile is (row, which ITEMS items of the row).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pecker_fast.kernels.elements import INTERPRETING, OPTIONS, PTX, pointer_to

__all__ = [
    "DIGIT_BINS",
    "group_means",
    "items_per_tile",
    "load_scores",
    "order_key",
    "tile_items",
    "tile_options",
]

DIGIT_BINS = 2048  # 11 bits a digit


def items_per_tile(grouped: bool) -> int:
    """How many items a program takes: scores, or groups."""
    if grouped:
        return 128
    return 65536 if INTERPRETING else 4096


def tile_options(dtype: torch.dtype, grouped: bool) -> dict[str, Any]:
    """Of a launch over tiles: many threads, so that their items and partial sums fit in registers.

    Without a bound of 64 the kernels of float32 scores need a few more, and an SM holds half as
    many of their programs.
    """
    bounded = dtype == torch.float32 and not grouped and PTX.value
    return OPTIONS | {"num_warps": 16} | ({"maxnreg": 64} if bounded else {})


@triton.jit
def order_key(score):
    """Unsigned integers of the scores' width in the scores' order; -0.0 is 0.0."""
    score = tl.where(score == 0.0, score * 0.0 + 0.0, score)
    if score.dtype == tl.float32:
        bits = score.to(tl.int32, bitcast=True)
        key = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)
    else:
        bits = score.to(tl.int64, bitcast=True)
        key = (bits ^ ((bits >> 63) | -9223372036854775808)).to(tl.uint64, bitcast=True)
    return key


@triton.jit
def load_scores(address, first, items, DTYPE: tl.constexpr, ITEMS: tl.constexpr):
    """Scores first .. first + ITEMS - 1 and which of them exist; 0 where they do not."""
    lane = tl.arange(0, ITEMS)
    size = tl.minimum(items - first, ITEMS).to(tl.int32)
    aligned_ptr = pointer_to(address, DTYPE, True) + first
    # 16 bytes at a time as far as there are that many: all but the last three scores, or nothing.
    wide = tl.where(address % 16 == 0, size // 4, 0) * 4
    score = tl.load(aligned_ptr + lane, mask=lane < wide, other=0.0)
    narrow_ptr = pointer_to(address, DTYPE, False) + first
    rest = tl.load(narrow_ptr + lane, mask=(lane >= wide) & (lane < size), other=0.0)
    return tl.where(lane < wide, score, rest), lane < size


@triton.jit
def group_means(address, first, items, numel, length, DTYPE: tl.constexpr, ITEMS: tl.constexpr):
    """Means (float64), first scores and sizes of groups first .. first + ITEMS - 1.

    Lane l of 32 adds scores l, l + 32, ... of its group in this order; then lane l + 16 is added to
    lane l, and so on: the same sum on every backend. A group that does not exist has size 0.
    """
    group = first + tl.arange(0, ITEMS)
    begin = group * length
    size = tl.where(group < items, tl.minimum(numel - begin, length), 0)
    scores_ptr = pointer_to(address, DTYPE, False) + begin
    lane = tl.arange(0, 32)
    LOADS: tl.constexpr = 4 if DTYPE == tl.float32 else 2  # in flight: as many as registers hold
    partial = tl.zeros([ITEMS, 32], tl.float64)
    offset = length * 0
    while offset < length:
        for load in tl.static_range(LOADS):
            place = offset + load * 32 + lane
            valid = place[None, :] < size[:, None]
            score = tl.load(scores_ptr[:, None] + place[None, :], mask=valid, other=0.0)
            partial = partial + score.to(tl.float64)
        offset += 32 * LOADS
    # Two terms a sum, so its order does not matter.
    half = tl.sum(tl.reshape(partial, [ITEMS, 2, 16]), axis=1)
    half = tl.sum(tl.reshape(half, [ITEMS, 2, 8]), axis=1)
    half = tl.sum(tl.reshape(half, [ITEMS, 2, 4]), axis=1)
    half = tl.sum(tl.reshape(half, [ITEMS, 2, 2]), axis=1)
    total = tl.sum(half, axis=1)
    return total / tl.maximum(size, 1).to(tl.float64), begin, size


@triton.jit
def tile_items(
    tensors_ptr, row, tile, DTYPE: tl.constexpr, GROUPED: tl.constexpr, ITEMS: tl.constexpr
):
    """A tile's keys, first positions, weights (0: no such item), and whether one is NaN."""
    table = tensors_ptr + row * 4
    address = tl.load(table)
    items = tl.load(table + 1)
    first = tile * ITEMS
    if GROUPED:
        numel = tl.load(table + 2)
        length = tl.load(table + 3)
        value, position, weight = group_means(address, first, items, numel, length, DTYPE, ITEMS)
    else:
        value, valid = load_scores(address, first, items, DTYPE, ITEMS)
        position = first.to(tl.int32) + tl.arange(0, ITEMS)
        weight = valid.to(tl.int32)
    has_nan = tl.max((value != value).to(tl.int32), axis=0) != 0
    return order_key(value), position, weight, has_nan
