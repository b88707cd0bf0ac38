"""Group normalisation, backward. dz = dropout's factor * dy * silu'(z); xhat = (v - mean_g) * rstd.

    bias:   S1 = sum dz       weight: S2 = sum dz * xhat       (per sample and channel, over pixels)
    x:      dv = rstd * (weight * dz - A - xhat * B) + gradient of the shortcut that also read x
    add:    sum dv = rstd * (weight * S1 - P * (A + B * mean of xhat)), without another pass
    A, B:   means over the group of weight * dz and weight * dz * xhat, from S1 and S2

Bytes per bfloat16 element: 4 (sums: x, dy) + 6 (apply: x, dy, dv), 8 with a shortcut's gradient.
z and dropout's draws are computed again, so forward saves nothing of an activation's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from pecker_fast.kernels.channels_last import (
    as_stored,
    elementwise_tile,
    launch,
    store_partials,
    tile_pointer,
    tile_position,
)
from pecker_fast.kernels.elements import PTX, load_as, store_as
from pecker_fast.kernels.group_norm import (
    STRIPS,
    group_options,
    groups_position,
    load_strip,
    of_group,
    parameters,
    sigmoid,
    strip_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pecker_fast.kernels.group_norm import Normalisation

__all__ = ["SUMS", "apply", "combine", "sums"]

SUMS = 4  # rows of `combine`'s table, per sample and channel: S1, S2, A, B


@triton.jit
def _derivative(xhat, weight, bias, SILU: tl.constexpr):
    """dy/dz of the activation."""
    derivative = tl.full(xhat.shape, 1.0, tl.float32)
    if SILU:
        z = xhat * weight + bias
        gate = sigmoid(z)
        derivative = gate * (1.0 + z * (1.0 - gate))
    return derivative


@triton.jit(do_not_specialize=["pixels"])
def _sums_kernel(
    source_ptr,
    dy_ptr,
    coefficients_ptr,
    weight_ptr,
    bias_ptr,
    seed_ptr,
    partials_ptr,
    bound: tl.int32,
    scale: tl.float32,
    pixels,
    source_channels,
    first,
    channels,
    SILU: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """S1 and S2 of a chunk of x or skip."""
    CHUNK: tl.constexpr = PARTS * BLOCK_PIXELS
    sample, chunk, channel = tile_position(pixels, source_channels, CHUNK, BLOCK_CHANNELS)
    present = channel < source_channels
    column = first + channel
    centre, rstd, offset, weight, bias = parameters(
        coefficients_ptr, weight_ptr, bias_ptr, sample, column, present, channels
    )
    source = tile_pointer(source_ptr, sample, chunk, pixels, source_channels, CHUNK)
    dy = tile_pointer(dy_ptr, sample, chunk, pixels, channels, CHUNK)
    sum1 = tl.zeros([BLOCK_PIXELS // STRIPS, BLOCK_CHANNELS], tl.float32)
    sum2 = tl.zeros([BLOCK_PIXELS // STRIPS, BLOCK_CHANNELS], tl.float32)
    for part in range(PARTS):
        strip_row, bits = strip_rows(
            part, seed_ptr, sample, chunk, column, channels, bound, CHUNK, BLOCK_PIXELS
        )
        for strip in tl.static_range(STRIPS):
            _, row, valid, value = load_strip(
                source, strip_row, strip, pixels - chunk * CHUNK, channel, present, source_channels
            )
            dz = load_as(dy, row[:, None] * channels + column[None, :], valid, tl.float32)
            xhat = (value - centre) * rstd + offset
            dz = dz * _derivative(xhat, weight, bias, SILU)
            if seed_ptr is not None:
                dz = tl.where((bits >> strip) & 1 != 0, dz, 0.0)
            sum1 += dz  # dy, and so dz, is 0 where there is no element
            sum2 += dz * xhat
    total1, total2 = tl.sum(sum1, axis=0), tl.sum(sum2, axis=0)
    if seed_ptr is not None:
        total1, total2 = total1 * scale, total2 * scale
    store_partials(
        partials_ptr, sample, chunk, tl.cdiv(pixels, CHUNK), channels, column, present,
        total1, total2,
    )  # fmt: skip


@triton.jit(do_not_specialize=["pixels", "chunks", "group_channels"])
def _combine_kernel(
    partials_ptr,
    coefficients_ptr,
    weight_ptr,
    table_ptr,
    grad_add_ptr,
    pixels,
    chunks,
    channels,
    group_channels,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    sample, channel, present = groups_position(
        channels // group_channels, group_channels, BLOCK_GROUPS, BLOCK_CHANNELS
    )
    start = partials_ptr + sample * chunks * 2 * channels
    partial1 = tl.zeros([BLOCK_CHUNKS, BLOCK_GROUPS * BLOCK_CHANNELS], tl.float64)
    partial2 = tl.zeros([BLOCK_CHUNKS, BLOCK_GROUPS * BLOCK_CHANNELS], tl.float64)
    first_chunk = 0
    while first_chunk < chunks:
        chunk = first_chunk + tl.arange(0, BLOCK_CHUNKS)
        valid = (chunk < chunks)[:, None] & present[None, :]
        offset = chunk[:, None] * 2 * channels + channel[None, :]
        partial1 += tl.load(start + offset, mask=valid, other=0.0).to(tl.float64)
        partial2 += tl.load(start + channels + offset, mask=valid, other=0.0).to(tl.float64)
        first_chunk += BLOCK_CHUNKS
    sum1 = tl.sum(partial1, axis=0)
    sum2 = tl.sum(partial2, axis=0)

    weight = load_as(as_stored(weight_ptr), channel, present, tl.float32).to(tl.float64)
    share = 1.0 / (group_channels * pixels.to(tl.float64))
    mean1 = of_group(weight * sum1, BLOCK_GROUPS, BLOCK_CHANNELS) * share
    mean2 = of_group(weight * sum2, BLOCK_GROUPS, BLOCK_CHANNELS) * share
    row = table_ptr + sample * 4 * channels + channel
    tl.store(row, sum1.to(tl.float32), mask=present)
    tl.store(row + channels, sum2.to(tl.float32), mask=present)
    tl.store(row + 2 * channels, mean1.to(tl.float32), mask=present)
    tl.store(row + 3 * channels, mean2.to(tl.float32), mask=present)
    if grad_add_ptr is not None:
        coefficient = coefficients_ptr + sample * 4 * channels + channel
        rstd = tl.load(coefficient + channels, mask=present, other=0.0).to(tl.float64)
        xhat_mean = tl.load(coefficient + 3 * channels, mask=present, other=0.0).to(tl.float64)
        total = rstd * (weight * sum1 - pixels * (mean1 + mean2 * xhat_mean))
        grad_add = as_stored(grad_add_ptr) + sample * channels
        store_as(grad_add, channel, total.to(tl.float32), present)


@triton.jit(do_not_specialize=["pixels"])
def _backward_kernel(
    source_ptr,
    dy_ptr,
    shortcut_ptr,
    coefficients_ptr,
    table_ptr,
    weight_ptr,
    bias_ptr,
    seed_ptr,
    dx_ptr,
    bound: tl.int32,
    scale: tl.float32,
    pixels,
    source_channels,
    first,
    channels,
    SILU: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The gradient of a chunk of x or skip."""
    CHUNK: tl.constexpr = PARTS * BLOCK_PIXELS
    sample, chunk, channel = tile_position(pixels, source_channels, CHUNK, BLOCK_CHANNELS)
    present = channel < source_channels
    column = first + channel
    centre, rstd, offset, weight, bias = parameters(
        coefficients_ptr, weight_ptr, bias_ptr, sample, column, present, channels
    )
    means = table_ptr + (sample * 4 + 2) * channels + column
    mean1 = tl.load(means, mask=present, other=0.0)
    mean2 = tl.load(means + channels, mask=present, other=0.0)
    source = tile_pointer(source_ptr, sample, chunk, pixels, source_channels, CHUNK)
    dx = tile_pointer(dx_ptr, sample, chunk, pixels, source_channels, CHUNK)
    dy = tile_pointer(dy_ptr, sample, chunk, pixels, channels, CHUNK)
    for part in range(PARTS):
        strip_row, bits = strip_rows(
            part, seed_ptr, sample, chunk, column, channels, bound, CHUNK, BLOCK_PIXELS
        )
        for strip in tl.static_range(STRIPS):
            entry, row, valid, value = load_strip(
                source, strip_row, strip, pixels - chunk * CHUNK, channel, present, source_channels
            )
            dz = load_as(dy, row[:, None] * channels + column[None, :], valid, tl.float32)
            xhat = (value - centre) * rstd + offset
            dz = dz * _derivative(xhat, weight, bias, SILU)
            if seed_ptr is not None:
                dz = tl.where((bits >> strip) & 1 != 0, dz * scale, 0.0)
            dv = rstd * (weight * dz - mean1[None, :] - xhat * mean2[None, :])
            if shortcut_ptr is not None:
                shortcut = tile_pointer(shortcut_ptr, sample, chunk, pixels, source_channels, CHUNK)
                dv += load_as(shortcut, entry, valid, tl.float32)
            store_as(dx, entry, dv, valid)


def sums(source: Tensor, first: int, dy: Tensor, norm: Normalisation, partials: Tensor) -> None:
    """S1 and S2 of every chunk of pixels for the channels of one of the two inputs.

    Args:
        source: (N, C1, H, W) x or (N, C2, H, W) skip, channels_last.
        first: Its first channel in y: 0 or C1.
        dy: (N, C, H, W), channels_last.
        norm: As forward had it.
        partials: (N, chunks, 2, C) float32; the channels of `source` written.
    """
    launch(
        _sums_kernel, source, source, dy, partials_ptr=partials, source_channels=source.shape[1],
        first=first, channels=dy.shape[1], **norm.arguments(),
    )  # fmt: skip


def combine(
    partials: Tensor,
    norm: Normalisation,
    groups: int,
    pixels: int,
    table: Tensor,
    grad_add: Tensor | None,
) -> None:
    """Combine the sums of `sums`; the gradient of `add`.

    Args:
        partials: (N, chunks, 2, C) float32.
        norm: As forward had it.
        groups: Number of groups; divides C.
        pixels: H * W.
        table: (N, SUMS, C) float32, written: S1, S2, A, B.
        grad_add: (N, C) of any dtype, written. None: not wanted.
    """
    samples, chunks, _, channels = partials.shape
    options = group_options(chunks, groups, channels // groups)
    if samples:
        _combine_kernel[(samples * triton.cdiv(groups, options["BLOCK_GROUPS"]),)](
            partials,
            norm.coefficients,
            norm.weight,
            table,
            grad_add,
            pixels,
            chunks,
            channels,
            channels // groups,
            **options,
        )


def apply(
    source: Tensor,
    first: int,
    dy: Tensor,
    shortcut: Tensor | None,
    norm: Normalisation,
    table: Tensor,
    dx: Tensor,
) -> None:
    """The gradient of one of the two inputs.

    Args:
        source: (N, C1, H, W) x or (N, C2, H, W) skip, channels_last.
        first: Its first channel in y: 0 or C1.
        dy: (N, C, H, W), channels_last.
        shortcut: Like `source`: a gradient to add. None: 0.
        norm: As forward had it.
        table: (N, SUMS, C) float32, from `combine`.
        dx: Like `source`, written.
    """
    samples, channels, height, width = source.shape
    options = {}
    parts = elementwise_tile(samples, height * width, channels).parts
    if PTX.value and norm.seed is not None and parts > 1:
        options["maxnreg"] = 128  # the compiler would take 166: 12 warps an SM instead of 16
    launch(
        _backward_kernel, source, source, dy, shortcut, tile_of=elementwise_tile, table_ptr=table,
        dx_ptr=dx, source_channels=channels, first=first, channels=dy.shape[1],
        **norm.arguments(), **options,
    )  # fmt: skip
