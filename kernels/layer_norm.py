"""Layer normalisation behind a residual sum, over the last axis of (rows, columns).

    total = x + add, rounded as it is stored    y = (total - mean) / sqrt(var + eps) * weight + bias

    dz = weight * dy      dtotal = rstd * (dz - mean dz - xhat * mean(dz * xhat)) + its own gradient
    weight: sum dy * xhat     bias: sum dy     over rows: a pair of sums a program, then all of them

A program has whole rows in registers, so each tensor passes once. Bytes per bfloat16 element: 8
forward (4 without a sum), 8 backward (6 without another gradient); torch takes 10 and 12, and 4
more where the parameters learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from pecker_fast.kernels.channels_last import as_stored
from pecker_fast.kernels.elements import INTERPRETING, load_as, round_trip, store_as

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST_COLUMNS", "STATISTICS", "backward", "forward", "partial_rows"]

MOST_COLUMNS = 8192
"""Longest row."""
STATISTICS = 2
"""Numbers kept of a row: mean, 1 / standard deviation."""

_ELEMENTS = 65536 if INTERPRETING else 2048  # a tile's: 16 a thread
_MOST_PROGRAMS = 256  # where each writes partial sums


@triton.jit
def _tile(tile, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """First row, entries from there on, columns, which rows, columns and entries are valid."""
    first = tile.to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    inside, present = row < rows - first, column < columns
    entry = row[:, None] * columns + column[None, :]
    return first, entry, column, inside, present, inside[:, None] & present[None, :]


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_kernel(
    x_ptr,
    add_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    y_ptr,
    statistics_ptr,
    eps: tl.float32,
    rows,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    first, entry, column, inside, present, valid = _tile(
        tl.program_id(0), rows, columns, BLOCK_ROWS, BLOCK_COLUMNS
    )
    value = load_as(as_stored(x_ptr) + first * columns, entry, valid, tl.float32)
    if add_ptr is not None:
        value += load_as(as_stored(add_ptr) + first * columns, entry, valid, tl.float32)
        total = as_stored(total_ptr) + first * columns
        store_as(total, entry, value, valid)
        value = round_trip(value, total.dtype.element_ty)
    mean = tl.sum(value, axis=1) / columns
    deviation = tl.where(valid, value - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(deviation * deviation, axis=1) / columns + eps)
    weight = load_as(as_stored(weight_ptr), column, present, tl.float32)
    bias = load_as(as_stored(bias_ptr), column, present, tl.float32)
    y = deviation * rstd[:, None] * weight[None, :] + bias[None, :]
    store_as(as_stored(y_ptr) + first * columns, entry, y, valid)
    statistics = statistics_ptr + (first + tl.arange(0, BLOCK_ROWS)) * 2
    tl.store(statistics, mean, mask=inside)
    tl.store(statistics + 1, rstd, mask=inside)


@triton.jit
def _backward_tile(
    tile,
    total_ptr,
    dy_ptr,
    other_ptr,
    weight_ptr,
    statistics_ptr,
    grad_ptr,
    rows,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write the gradient of one tile; dy and xhat, 0 where there is nothing."""
    first, entry, column, inside, present, valid = _tile(
        tile, rows, columns, BLOCK_ROWS, BLOCK_COLUMNS
    )
    statistics = statistics_ptr + (first + tl.arange(0, BLOCK_ROWS)) * 2
    mean = tl.load(statistics, mask=inside, other=0.0)
    rstd = tl.load(statistics + 1, mask=inside, other=0.0)
    total = load_as(as_stored(total_ptr) + first * columns, entry, valid, tl.float32)
    dy = load_as(as_stored(dy_ptr) + first * columns, entry, valid, tl.float32)
    weight = load_as(as_stored(weight_ptr), column, present, tl.float32)
    xhat = tl.where(valid, (total - mean[:, None]) * rstd[:, None], 0.0)
    dz = dy * weight[None, :]
    along_one = tl.sum(dz, axis=1) / columns
    along_xhat = tl.sum(dz * xhat, axis=1) / columns
    grad = rstd[:, None] * (dz - along_one[:, None] - xhat * along_xhat[:, None])
    if other_ptr is not None:
        grad += load_as(as_stored(other_ptr) + first * columns, entry, valid, tl.float32)
    store_as(as_stored(grad_ptr) + first * columns, entry, grad, valid)
    return dy, xhat


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_backward_kernel(
    total_ptr,
    dy_ptr,
    other_ptr,
    weight_ptr,
    statistics_ptr,
    grad_ptr,
    partials_ptr,
    rows,
    columns,
    TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    # fmt: off
    if partials_ptr is None:
        _backward_tile(program, total_ptr, dy_ptr, other_ptr, weight_ptr, statistics_ptr, grad_ptr,
                       rows, columns, BLOCK_ROWS, BLOCK_COLUMNS)
    else:
        of_bias = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        of_weight = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for i in range(TILES):
            dy, xhat = _backward_tile(program * TILES + i, total_ptr, dy_ptr, other_ptr, weight_ptr,
                                      statistics_ptr, grad_ptr, rows, columns, BLOCK_ROWS,
                                      BLOCK_COLUMNS)
            of_bias += dy
            of_weight += dy * xhat
        # fmt: on
        column = tl.arange(0, BLOCK_COLUMNS)
        sums = partials_ptr + program.to(tl.int64) * 2 * columns
        tl.store(sums + column, tl.sum(of_bias, axis=0), mask=column < columns)
        tl.store(sums + columns + column, tl.sum(of_weight, axis=0), mask=column < columns)


def forward(
    x: Tensor,
    add: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    total: Tensor,
    y: Tensor,
    statistics: Tensor,
) -> None:
    """Add up and normalise.

    Args:
        x: (..., C) float32, bfloat16 or float16, contiguous, as all others; C <= MOST_COLUMNS.
        add: The same shape, any of these dtypes. None: `total` is x.
        weight: (C,) of any of them.
        bias: Likewise.
        eps: Added to the variance.
        total: The same shape, any of them, written where there is a sum.
        y: Likewise, written.
        statistics: (rows, STATISTICS) float32, written.
    """
    rows, columns, tile = _sizes(x)
    grid = (triton.cdiv(rows, tile["BLOCK_ROWS"]),)
    if grid[0]:
        _layer_norm_kernel[grid](
            x, add, weight, bias, total, y, statistics, eps, rows, columns, **tile
        )


def partial_rows(x: Tensor) -> int:
    """How many pairs of partial sums `backward` makes; they depend on the shape alone."""
    return _programs(x)[0]


def backward(
    total: Tensor,
    dy: Tensor,
    other: Tensor | None,
    weight: Tensor,
    statistics: Tensor,
    grad: Tensor,
    partials: Tensor | None,
) -> None:
    """The gradient of the sum, and with it that of both summands.

    Args:
        total: As forward wrote it.
        dy: Of y, the same shape.
        other: What else the sum's gradient is made of, the same shape. None: nothing.
        weight: As forward had it.
        statistics: As forward wrote them.
        grad: Like `total`, written.
        partials: (partial_rows(total), 2, C) float32, written: sums of dy and of dy * xhat. None:
            not wanted.
    """
    rows, columns, tile = _sizes(total)
    programs, tiles = _programs(total)
    if partials is None:
        programs, tiles = triton.cdiv(rows, tile["BLOCK_ROWS"]), 1
    if programs:
        _layer_norm_backward_kernel[(programs,)](
            total, dy, other, weight, statistics, grad, partials, rows, columns, TILES=tiles, **tile
        )


def _programs(x: Tensor) -> tuple[int, int]:
    """Programs that write partial sums, and the tiles that each of them takes."""
    rows, _, tile = _sizes(x)
    tiles = triton.cdiv(rows, tile["BLOCK_ROWS"])
    each = max(1, triton.cdiv(tiles, _MOST_PROGRAMS))
    return triton.cdiv(tiles, each), each


def _sizes(x: Tensor) -> tuple[int, int, dict[str, Any]]:
    """Rows, columns, and the options of a launch."""
    columns = x.shape[-1]
    rows = x.numel() // max(columns, 1)
    block = triton.next_power_of_2(columns)
    block_rows = max(1, _ELEMENTS // block)
    if INTERPRETING:
        block_rows = min(block_rows, triton.next_power_of_2(max(rows, 1)))
    tile = {
        "BLOCK_ROWS": block_rows,
        "BLOCK_COLUMNS": block,
        "num_warps": 4 if block_rows * block <= 4096 else 8,
        "enable_fp_fusion": True,
    }
    return rows, columns, tile
