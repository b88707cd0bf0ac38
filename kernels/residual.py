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
    as_stored,
    chunk_tile,
    programs,
    store_partials,
    tile_options,
    tile_pointer,
    tile_position,
    tile_statistics,
)
from pecker_fast.kernels.elements import load_as, round_trip, store_as

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["residual_add"]


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
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    sample, chunk, channel = tile_position(pixels, channels, BLOCK_PIXELS, BLOCK_CHANNELS)
    row = tl.arange(0, BLOCK_PIXELS)
    count = tl.minimum(pixels - chunk * BLOCK_PIXELS, BLOCK_PIXELS)
    present = channel < channels
    valid = (row < count)[:, None] & present[None, :]
    offset = row[:, None] * channels + channel[None, :]
    hidden = tile_pointer(hidden_ptr, sample, chunk, pixels, channels, BLOCK_PIXELS)
    shortcut = tile_pointer(shortcut_ptr, sample, chunk, pixels, channels, BLOCK_PIXELS)
    total = load_as(hidden, offset, valid, tl.float32)
    if bias_ptr is not None:
        total += load_as(as_stored(bias_ptr), channel, present, tl.float32)[None, :]
    total += load_as(shortcut, offset, valid, tl.float32)
    if second_ptr is not None:
        second = tile_pointer(second_ptr, sample, chunk, pixels, channels, BLOCK_PIXELS)
        total += load_as(second, offset, valid, tl.float32)
    total = total * scale
    out = tile_pointer(out_ptr, sample, chunk, pixels, channels, BLOCK_PIXELS)
    store_as(out, offset, total, valid)
    mean, squares = tile_statistics(round_trip(total, out.dtype.element_ty), valid, count)
    chunks = tl.cdiv(pixels, BLOCK_PIXELS)
    store_partials(partials_ptr, sample, chunk, chunks, channels, channel, present, mean, squares)


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
    samples, channels, height, width = hidden.shape
    pixels = height * width
    tile = chunk_tile(pixels, channels)
    grid = (programs(tile, samples, pixels, channels),)
    if grid[0]:
        _residual_kernel[grid](
            hidden,
            shortcut,
            second,
            bias,
            out,
            partials,
            1.0 / divisor,
            pixels,
            channels,
            **tile_options(tile),
        )
