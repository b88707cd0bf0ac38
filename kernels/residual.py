"""The end of a residual block: out = (hidden + bias + shortcuts) / divisor, and out's statistics.

The next group normalisation needs the mean and the squared deviations of every channel; they are
taken of the rounded sums while these are in registers, and save it a read.

Bytes per bfloat16 element: 2 for each operand and for out. Backward moves nothing: all operands
have the same gradient; that of the bias reads it once (`channels_last.channel_sums`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from pecker_fast.kernels.channels_last import (
    add_deviations,
    as_stored,
    launch,
    store_statistics,
    tile_pointer,
    tile_position,
)
from pecker_fast.kernels.elements import load_as, round_trip, store_as

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["residual_add"]


@triton.jit
def _add_up(hidden, shortcut, second, bias, out, offset, valid, scale):
    """Write the sums of a tile, and return them as they were written."""
    total = load_as(hidden, offset, valid, tl.float32)
    if bias is not None:
        total += bias[None, :]
    total += load_as(shortcut, offset, valid, tl.float32)
    if second is not None:
        total += load_as(second, offset, valid, tl.float32)
    total = total * scale
    store_as(out, offset, total, valid)
    return round_trip(total, out.dtype.element_ty)


@triton.jit(do_not_specialize=["pixels"])
def _residual_kernel(
    hidden_ptr,
    shortcut_ptr,
    second_ptr,
    bias_ptr,
    out_ptr,
    partials_ptr,
    scale: tl.float32,
    pixels,
    channels,
    PARTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    CHUNK: tl.constexpr = PARTS * BLOCK_PIXELS
    sample, chunk, channel = tile_position(pixels, channels, CHUNK, BLOCK_CHANNELS)
    count = tl.minimum(pixels - chunk * CHUNK, CHUNK)
    present = channel < channels
    hidden = tile_pointer(hidden_ptr, sample, chunk, pixels, channels, CHUNK)
    shortcut = tile_pointer(shortcut_ptr, sample, chunk, pixels, channels, CHUNK)
    out = tile_pointer(out_ptr, sample, chunk, pixels, channels, CHUNK)
    second = None
    if second_ptr is not None:
        second = tile_pointer(second_ptr, sample, chunk, pixels, channels, CHUNK)
    bias = None
    if bias_ptr is not None:
        bias = load_as(as_stored(bias_ptr), channel, present, tl.float32)
    row = tl.arange(0, BLOCK_PIXELS)
    valid = (row < count)[:, None] & present[None, :]
    offset = row[:, None] * channels + channel[None, :]
    value = _add_up(hidden, shortcut, second, bias, out, offset, valid, scale)
    centre = tl.sum(tl.where(valid, value, 0.0), axis=0) / tl.minimum(count, BLOCK_PIXELS)
    sums = tl.zeros([BLOCK_PIXELS // 4, BLOCK_CHANNELS], tl.float32)
    sums, squares = add_deviations(value, valid, centre, sums, sums)
    for part in range(1, PARTS):
        row = part * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        valid = (row < count)[:, None] & present[None, :]
        offset = row[:, None] * channels + channel[None, :]
        value = _add_up(hidden, shortcut, second, bias, out, offset, valid, scale)
        sums, squares = add_deviations(value, valid, centre, sums, squares)
    store_statistics(
        partials_ptr, sample, chunk, pixels, channels, channel, present, count, centre, sums,
        squares, CHUNK,
    )  # fmt: skip


def residual_add(
    hidden: Tensor,
    shortcut: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
    divisor: float,
    out: Tensor,
    partials: Tensor,
) -> None:
    """Add up, divide, and take the statistics of the result.

    Args:
        hidden: (N, C, H, W) float32, bfloat16 or float16, channels_last.
        shortcut: The same shape, any of these dtypes, channels_last.
        second: A second shortcut. None: there is one.
        bias: (C,) of any dtype. None: 0.
        divisor: Not 0.
        out: Like `hidden`, written.
        partials: (N, chunks, 2, C) float32, written: as `channels_last.statistics` of `out`.
    """
    scale = 1.0 / divisor
    launch(
        _residual_kernel, hidden, hidden, shortcut, second, bias, out, partials, scale,
        channels=hidden.shape[1],
    )  # fmt: skip
