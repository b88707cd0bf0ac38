"""With the threshold known: how many items of each tile are taken, and their positions, in order.

An item is taken if its key is above the threshold, or equal to it while the weight of the equal
items so far stays within what is wanted. Reads the scores once for `count` and once for `write`,
which also writes 4 bytes per position. The caller sums the tiles' counts in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from pecker_fast.kernels.elements import STORED
from pecker_fast.kernels.topk_items import items_per_tile, tile_items, tile_options

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["count", "trim", "write"]


@triton.jit
def _count_kernel(
    tensors_ptr, tiles_ptr, state_ptr, above_ptr, equal_ptr,
    DTYPE: tl.constexpr, GROUPED: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles_ptr + 2 * program).to(tl.int64)
    tile = tl.load(tiles_ptr + 2 * program + 1).to(tl.int64)
    key, _, weight, _ = tile_items(tensors_ptr, row, tile, DTYPE, GROUPED, ITEMS)
    threshold = tl.load(state_ptr).to(key.dtype)
    above = tl.sum(tl.where(key > threshold, weight, 0), axis=0)
    equal = tl.sum(tl.where(key == threshold, weight, 0), axis=0)
    tl.store(above_ptr + program, above.to(tl.int64))
    tl.store(equal_ptr + program, equal.to(tl.int64))


@triton.jit
def _trim_kernel(
    tensors_ptr, tiles_ptr, state_ptr, equal_before_ptr, equal_ptr,
    DTYPE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    before = tl.load(equal_before_ptr + program)
    wanted = tl.load(state_ptr + 2)
    # True for one program at most, and what it writes makes it true for no other.
    if (before <= wanted) & (before + tl.load(equal_ptr + program) > wanted):
        row = tl.load(tiles_ptr + 2 * program).to(tl.int64)
        tile = tl.load(tiles_ptr + 2 * program + 1).to(tl.int64)
        key, _, weight, _ = tile_items(tensors_ptr, row, tile, DTYPE, True, ITEMS)
        tie = key == tl.load(state_ptr).to(key.dtype)
        rank = before + tl.cumsum(tl.where(tie, weight, 0), axis=0)
        taken = tl.sum(tl.where(tie & (rank <= wanted), weight, 0), axis=0)
        tl.store(state_ptr + 2, before + taken)


@triton.jit
def _write_kernel(
    tensors_ptr, tiles_ptr, state_ptr, above_before_ptr, equal_before_ptr, out_ptr,
    DTYPE: tl.constexpr, GROUPED: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(tiles_ptr + 2 * program).to(tl.int64)
    tile = tl.load(tiles_ptr + 2 * program + 1).to(tl.int64)
    key, position, weight, _ = tile_items(tensors_ptr, row, tile, DTYPE, GROUPED, ITEMS)
    threshold = tl.load(state_ptr).to(key.dtype)
    wanted = tl.load(state_ptr + 2)
    ties_before = tl.load(equal_before_ptr + program)

    tie = key == threshold
    rank = ties_before + tl.cumsum(tl.where(tie, weight, 0), axis=0)
    taken = (weight > 0) & ((key > threshold) | (tie & (rank <= wanted)))
    size = tl.where(taken, weight, 0)
    begin = tl.load(above_before_ptr + program) + tl.minimum(ties_before, wanted)
    slot = begin + tl.cumsum(size, axis=0) - size
    if GROUPED:
        length = tl.load(tensors_ptr + row * 4 + 3)
        offset = length * 0
        while offset < length:
            place = offset + tl.arange(0, 32)
            valid = place[None, :] < size[:, None]
            written = (position[:, None] + place[None, :]).to(tl.int32)
            tl.store(out_ptr + slot[:, None] + place[None, :], written, mask=valid)
            offset += 32
    else:
        tl.store(out_ptr + slot, position, mask=taken)


def count(
    dtype: torch.dtype,
    grouped: bool,
    tensors: Tensor,
    tiles: Tensor,
    state: Tensor,
    above: Tensor,
    equal: Tensor,
) -> None:
    """How much of each tile lies above the threshold, and how much is equal to it.

    Args:
        dtype: float32 or float64, of the scores.
        grouped: items are groups of scores.
        tensors: (n, 4) int64: address, items, numel, length.
        tiles: (T, 2) int32: row of `tensors`, tile of items.
        state: (4,) int64: prefix is the threshold.
        above: (T,) int64, written.
        equal: (T,) int64, written.
    """
    if len(tiles):
        _count_kernel[(len(tiles),)](
            tensors, tiles, state, above, equal, DTYPE=STORED[dtype], GROUPED=grouped,
            ITEMS=items_per_tile(grouped), **tile_options(dtype, grouped),
        )  # fmt: skip


def trim(
    dtype: torch.dtype,
    tensors: Tensor,
    tiles: Tensor,
    state: Tensor,
    equal_before: Tensor,
    equal: Tensor,
) -> None:
    """Lower `wanted` to what the equal groups that fit, taken whole and in order, really weigh.

    Args:
        dtype: float32 or float64, of the scores.
        tensors: (n, 4) int64: address, items, numel, length.
        tiles: (T, 2) int32: row of `tensors`, tile of groups.
        state: (4,) int64: prefix is the threshold; wanted is updated.
        equal_before: (T,) int64: the sum of `equal` over the tiles before.
        equal: (T,) int64, from `count`.
    """
    if len(tiles):
        _trim_kernel[(len(tiles),)](
            tensors, tiles, state, equal_before, equal, DTYPE=STORED[dtype],
            ITEMS=items_per_tile(True), **tile_options(dtype, True),
        )  # fmt: skip


def write(
    dtype: torch.dtype,
    grouped: bool,
    tensors: Tensor,
    tiles: Tensor,
    state: Tensor,
    above_before: Tensor,
    equal_before: Tensor,
    out: Tensor,
) -> None:
    """Write the positions of the taken items' scores in their tensors, in order.

    Args:
        dtype: float32 or float64, of the scores.
        grouped: items are groups of scores.
        tensors: (n, 4) int64: address, items, numel, length.
        tiles: (T, 2) int32: row of `tensors`, tile of items, in order.
        state: (4,) int64: prefix is the threshold, wanted the weight of equal items to take.
        above_before: (T,) int64: weight above the threshold in the tiles before.
        equal_before: (T,) int64: weight equal to it in the tiles before.
        out: int32, written from above_before + min(equal_before, wanted) on by every tile.
    """
    if len(tiles):
        _write_kernel[(len(tiles),)](
            tensors, tiles, state, above_before, equal_before, out, DTYPE=STORED[dtype],
            GROUPED=grouped, ITEMS=items_per_tile(grouped), **tile_options(dtype, grouped),
        )  # fmt: skip
