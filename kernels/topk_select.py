"""The threshold of an exact top-k over a list of tensors, without copying or moving the scores.

Radix selection, 11 bits a pass, on integers that have the order of the scores: `histogram` then
`pick`. Where a sample brackets the threshold, `collect` reads everything once (4 bytes a float32
score), and the passes run over the few scores inside the bracket. Atomics add integers only, so no
result depends on timing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from pecker_fast.kernels.elements import OPTIONS, STORED
from pecker_fast.kernels.topk_items import (
    DIGIT_BINS,
    items_per_tile,
    load_scores,
    order_key,
    tile_items,
    tile_options,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["collect", "histogram", "pick", "sample", "settle"]

_BLOCK_SIZE = 1024


@triton.jit(do_not_specialize=["tensor_count", "search_steps", "count"])
def _sample_kernel(
    tensors_ptr, ends_ptr, out_ptr, tensor_count, search_steps, count,
    DTYPE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    valid = j < count
    stride = tl.load(ends_ptr + tensor_count - 1) // count
    hashed = (j.to(tl.uint32) * 2654435761) >> 8  # no period of the data can hide
    position = j * stride + hashed.to(tl.int64) % stride

    low = tl.zeros([BLOCK_SIZE], tl.int64)  # the first tensor that ends behind `position`
    high = low + (tensor_count - 1)
    step = 0
    while step < search_steps:
        middle = (low + high) // 2
        behind = tl.load(ends_ptr + middle) > position
        high = tl.where(behind, middle, high)
        low = tl.where(behind, low, tl.minimum(middle + 1, high))
        step += 1
    begin = tl.load(ends_ptr + low - 1, mask=low > 0, other=0)
    scores_ptr = tl.load(tensors_ptr + low * 4).to(tl.pointer_type(DTYPE))
    tl.store(out_ptr + j, tl.load(scores_ptr + (position - begin), mask=valid), mask=valid)


@triton.jit(do_not_specialize=["shift", "bits"])
def _histogram_kernel(
    tensors_ptr, tiles_ptr, state_ptr, bins_ptr, shift, bits,
    DTYPE: tl.constexpr, GROUPED: tl.constexpr, ITEMS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles_ptr + 2 * program).to(tl.int64)
    tile = tl.load(tiles_ptr + 2 * program + 1).to(tl.int64)
    key, _, weight, has_nan = tile_items(tensors_ptr, row, tile, DTYPE, GROUPED, ITEMS)
    if has_nan:
        tl.atomic_min(state_ptr + 3, row, sem="relaxed")
    prefix = tl.load(state_ptr).to(key.dtype)
    prefix_mask = tl.load(state_ptr + 1).to(key.dtype)
    match = (weight > 0) & ((key & prefix_mask) == prefix)
    digit = (key >> shift.to(key.dtype)).to(tl.int32) & ((1 << bits) - 1)
    # Triton builds a histogram in a time that hardly depends on how many items match. Atomics would
    # queue up where many items share few bins, as they do in the first digit; few items do not.
    if tl.sum(match.to(tl.int32), axis=0) * 8 > ITEMS:
        bin = tl.arange(0, BINS)
        total = tl.histogram(digit, BINS, mask=match).to(tl.int64)
        if GROUPED:  # all groups have the tensor's length, except that its last one may be shorter
            length = tl.load(tensors_ptr + row * 4 + 3)
            total = total * length
            tl.atomic_add(
                bins_ptr + digit, weight - length, mask=match & (weight != length), sem="relaxed"
            )
        tl.atomic_add(bins_ptr + bin, total, mask=total != 0, sem="relaxed")
    else:
        tl.atomic_add(bins_ptr + digit, weight.to(tl.int64), mask=match, sem="relaxed")


@triton.jit(do_not_specialize=["shift", "bits"])
def _pick_kernel(bins_ptr, state_ptr, shift, bits, BINS: tl.constexpr):
    bin = tl.arange(0, BINS)
    total = tl.load(bins_ptr + bin)
    wanted = tl.load(state_ptr + 2)
    # From the highest bin down, bins are taken whole while they fit into what is wanted.
    above = tl.sum(total, axis=0) - tl.cumsum(total, axis=0)  # in the bins above this one
    digit = tl.max(tl.where(above + total > wanted, bin, 0), axis=0)  # all fit: the lowest bin
    taken = tl.sum(tl.where(bin > digit, total, 0), axis=0)
    place = shift.to(tl.int64)
    digit_mask = (tl.full([], 1, tl.int64) << bits) - 1
    tl.store(state_ptr, tl.load(state_ptr) | (digit.to(tl.int64) << place))
    tl.store(state_ptr + 1, tl.load(state_ptr + 1) | (digit_mask << place))
    tl.store(state_ptr + 2, wanted - taken)
    tl.store(bins_ptr + bin, tl.zeros([BINS], tl.int64))


@triton.jit(do_not_specialize=["capacity"])
def _collect_kernel(
    tensors_ptr, tiles_ptr, bracket_ptr, above_ptr, equal_ptr, keys_ptr, key_tiles_ptr,
    counters_ptr, capacity, DTYPE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles_ptr + 2 * program).to(tl.int64)
    tile = tl.load(tiles_ptr + 2 * program + 1).to(tl.int64)
    table = tensors_ptr + row * 4
    score, valid = load_scores(tl.load(table), tile * ITEMS, tl.load(table + 1), DTYPE, ITEMS)
    if tl.max((score != score).to(tl.int32), axis=0) != 0:
        tl.atomic_min(counters_ptr + 1, row, sem="relaxed")
    low = order_key(tl.load(bracket_ptr))
    high = order_key(tl.load(bracket_ptr + 1))
    key = order_key(score)
    inside = valid & (key >= low) & (key <= high)
    count = tl.sum(inside.to(tl.int32), axis=0)
    above = tl.sum((valid & (key > high)).to(tl.int32), axis=0)
    tl.store(above_ptr + program, above.to(tl.int64))
    tl.store(equal_ptr + program, tl.where(low == high, count, 0).to(tl.int64))
    if (low != high) & (count > 0):
        slot = tl.atomic_add(counters_ptr, count.to(tl.int64), sem="relaxed")
        slot = slot + tl.cumsum(inside.to(tl.int32), axis=0) - 1
        kept = inside & (slot < capacity)
        tl.store(keys_ptr + slot, score, mask=kept)
        tl.store(key_tiles_ptr + slot, (slot * 0 + program).to(tl.int32), mask=kept)


@triton.jit(do_not_specialize=["count"])
def _settle_kernel(
    keys_ptr, key_tiles_ptr, state_ptr, above_ptr, equal_ptr, count, BLOCK_SIZE: tl.constexpr
):
    slot = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    valid = slot < count
    key = order_key(tl.load(keys_ptr + slot, mask=valid, other=0.0))
    tile = tl.load(key_tiles_ptr + slot, mask=valid, other=0).to(tl.int64)
    threshold = tl.load(state_ptr).to(key.dtype)
    one = tl.full([BLOCK_SIZE], 1, tl.int64)
    tl.atomic_add(above_ptr + tile, one, mask=valid & (key > threshold), sem="relaxed")
    tl.atomic_add(equal_ptr + tile, one, mask=valid & (key == threshold), sem="relaxed")


def sample(dtype: torch.dtype, tensors: Tensor, ends: Tensor, out: Tensor) -> None:
    """Read len(out) scores, one at a hashed place in each of as many equal strides.

    Args:
        dtype: float32 or float64, of the scores and of `out`.
        tensors: (n, 4) int64: address, items, numel, length.
        ends: (n,) int64: cumulative numbers of items; the last is at least len(out).
        out: (S,) written.
    """
    count = len(out)
    _sample_kernel[(triton.cdiv(count, _BLOCK_SIZE),)](
        tensors, ends, out, len(ends), len(ends).bit_length(), count,
        DTYPE=STORED[dtype], BLOCK_SIZE=_BLOCK_SIZE, **OPTIONS,
    )  # fmt: skip


def histogram(
    dtype: torch.dtype,
    grouped: bool,
    tensors: Tensor,
    tiles: Tensor,
    state: Tensor,
    shift: int,
    bits: int,
    bins: Tensor,
) -> None:
    """Add the weights of the items that match the prefix to the bins of their next digit.

    Args:
        dtype: float32 or float64, of the scores.
        grouped: items are groups of scores.
        tensors: (n, 4) int64: address, items, numel, length.
        tiles: (T, 2) int32: row of `tensors`, tile of items.
        state: (4,) int64: prefix, prefix_mask, wanted, and the first tensor with a NaN, updated.
        shift: the digit's lowest bit.
        bits: the digit's width, at most 11.
        bins: (2048,) int64, added to.
    """
    if len(tiles):
        _histogram_kernel[(len(tiles),)](
            tensors, tiles, state, bins, shift, bits, DTYPE=STORED[dtype], GROUPED=grouped,
            ITEMS=items_per_tile(grouped), BINS=DIGIT_BINS, **tile_options(dtype, grouped),
        )  # fmt: skip


def pick(bins: Tensor, state: Tensor, shift: int, bits: int) -> None:
    """Add the next digit of the threshold to the state and empty the bins.

    Args:
        bins: (2048,) int64, from `histogram`; zero afterwards.
        state: (4,) int64: prefix, prefix_mask and wanted are updated.
        shift: the digit's lowest bit.
        bits: the digit's width.
    """
    _pick_kernel[(1,)](bins, state, shift, bits, BINS=DIGIT_BINS, **OPTIONS)


def collect(
    dtype: torch.dtype,
    tensors: Tensor,
    tiles: Tensor,
    bracket: Tensor,
    above: Tensor,
    equal: Tensor,
    keys: Tensor,
    key_tiles: Tensor,
    counters: Tensor,
) -> None:
    """Count the scores above a bracket and keep those inside it, in one read of all scores.

    Args:
        dtype: float32 or float64, of the scores, `bracket` and `keys`.
        tensors: (n, 4) int64: address, items, numel, length (1).
        tiles: (T, 2) int32: row of `tensors`, tile of items.
        bracket: (2,) low and high; where they are equal, scores inside are only counted.
        above: (T,) int64, written: scores above the bracket.
        equal: (T,) int64, written: scores in a bracket of one value, else 0.
        keys: (capacity,) written: scores inside, as far as they fit, in any order.
        key_tiles: (capacity,) int32, written: their tiles.
        counters: (2,) int64: 0, updated to the number inside; INT32_MAX, lowered to the first
            tensor with a NaN.
    """
    if len(tiles):
        _collect_kernel[(len(tiles),)](
            tensors, tiles, bracket, above, equal, keys, key_tiles, counters, len(keys),
            DTYPE=STORED[dtype], ITEMS=items_per_tile(False), **tile_options(dtype, False),
        )  # fmt: skip


def settle(
    dtype: torch.dtype,
    keys: Tensor,
    key_tiles: Tensor,
    count: int,
    state: Tensor,
    above: Tensor,
    equal: Tensor,
) -> None:
    """Add the kept scores that lie above the threshold, and those equal to it, to their tiles.

    Args:
        dtype: float32 or float64, of `keys`.
        keys: (capacity,) from `collect`.
        key_tiles: (capacity,) int32, from `collect`.
        count: how many of them there are.
        state: (4,) int64: prefix is the threshold.
        above: (T,) int64, added to.
        equal: (T,) int64, added to.
    """
    if count:
        _settle_kernel[(triton.cdiv(count, _BLOCK_SIZE),)](
            keys, key_tiles, state, above, equal, count, BLOCK_SIZE=_BLOCK_SIZE, **OPTIONS
        )
