"""Group normalisation, forward.

    y = dropout(silu((v - mean_g) / sqrt(var_g + eps) * weight + bias)),  v = concat(x, skip) + add

v is never made: `add` only shifts a channel's mean, so the statistics are those of x and of skip,
taken apart (`channels_last.statistics`) and combined here per group.

Bytes per bfloat16 element: 2 (statistics; 0 where the kernel that wrote x took them) + 4 (apply:
read, write). Dropout stores no mask: backward draws the same numbers again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from pecker_fast.kernels.channels_last import (
    as_stored,
    chunk_tile,
    elementwise_tile,
    launch,
    tile_pointer,
    tile_position,
)
from pecker_fast.kernels.elements import PTX, load_as, store_as

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "COEFFICIENTS",
    "STRIPS",
    "Normalisation",
    "apply",
    "coefficients",
    "group_options",
    "groups_position",
    "kept_bits",
    "load_strip",
    "of_group",
    "parameters",
    "sigmoid",
    "strip_rows",
]

# Rows of `coefficients`, per sample and channel, with xhat = (x - centre) * rstd + offset:
# centre, rounded; rstd; offset, what rounding the centre took away; the mean of xhat over pixels.
COEFFICIENTS = 4

# A tile is gone through in so many strips of every fourth pixel: dropout draws for four pixels at
# once, and without it a strip needs fewer registers than a tile.
STRIPS: tl.constexpr = tl.constexpr(4)

_GROUP_ELEMENTS = 2048  # of partial statistics that a program holds at a time


class Normalisation(NamedTuple):
    """What forward and backward of one call have in common.

    Attributes:
        coefficients: (N, COEFFICIENTS, C) float32.
        weight: (C,) of any dtype.
        bias: (C,) of any dtype.
        silu: Apply x * sigmoid(x).
        dropout: Probability with which an element becomes 0.
        seed: (1,) int64 on the device. None: no dropout.
    """

    coefficients: Tensor
    weight: Tensor
    bias: Tensor
    silu: bool
    dropout: float
    seed: Tensor | None

    def arguments(self) -> dict[str, Any]:
        """As the kernels name them."""
        kept = 1.0 - self.dropout
        return {
            "coefficients_ptr": self.coefficients,
            "weight_ptr": self.weight,
            "bias_ptr": self.bias,
            "seed_ptr": self.seed,
            # An int32 is kept that is not below this.
            "bound": min(round(self.dropout * 2**32) - 2**31, 2**31 - 1),
            "scale": 1.0 / kept if kept > 0 else 0.0,  # nothing is kept
            "SILU": self.silu,
        }


def group_options(chunks: int, groups: int, group_channels: int) -> dict[str, Any]:
    """Blocks and options of a launch whose programs combine the partials of some groups.

    As many groups of a sample as fit: rows are read whole, and one warp does what many would.
    """
    channels = triton.next_power_of_2(group_channels)
    rows = min(triton.next_power_of_2(chunks), max(1, _GROUP_ELEMENTS // channels))
    at_once = min(triton.next_power_of_2(groups), max(1, _GROUP_ELEMENTS // (rows * channels)))
    return {
        "BLOCK_CHUNKS": rows,
        "BLOCK_GROUPS": at_once,
        "BLOCK_CHANNELS": channels,
        "num_warps": min(max(1, rows * at_once * channels // 128), 8),
        "enable_fp_fusion": True,
    }


@triton.jit
def groups_position(
    groups, group_channels, BLOCK_GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """Sample and channels of this program, group after group, and which of these exist."""
    blocks = tl.cdiv(groups, BLOCK_GROUPS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.arange(0, BLOCK_GROUPS * BLOCK_CHANNELS)
    group = (tl.program_id(0) % blocks) * BLOCK_GROUPS + place // BLOCK_CHANNELS
    lane = place % BLOCK_CHANNELS
    present = (lane < group_channels) & (group < groups)
    return sample, group * group_channels + lane, present


@triton.jit
def of_group(values, BLOCK_GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """The sum of each group, at each of its channels."""
    total = tl.sum(tl.reshape(values, [BLOCK_GROUPS, BLOCK_CHANNELS]), axis=1)
    spread = tl.broadcast_to(total[:, None], [BLOCK_GROUPS, BLOCK_CHANNELS])
    return tl.reshape(spread, [BLOCK_GROUPS * BLOCK_CHANNELS])


@triton.jit
def _channel_statistics(
    partials_ptr,
    sample,
    channel,
    present,
    pixels,
    chunks,
    channels,
    CHUNK_PIXELS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """Mean and sum of squared deviations over all pixels, float64; 0 where not present."""
    start = partials_ptr + sample * chunks * 2 * channels
    total = tl.zeros([BLOCK_CHUNKS, channel.shape[0]], tl.float64)
    first_chunk = 0
    while first_chunk < chunks:
        chunk = first_chunk + tl.arange(0, BLOCK_CHUNKS)
        valid = (chunk < chunks)[:, None] & present[None, :]
        count = tl.minimum(pixels - chunk * CHUNK_PIXELS, CHUNK_PIXELS).to(tl.float64)
        offset = chunk[:, None] * 2 * channels + channel[None, :]
        mean = tl.load(start + offset, mask=valid, other=0.0).to(tl.float64)
        total += tl.where(valid, count[:, None] * mean, 0.0)
        first_chunk += BLOCK_CHUNKS
    channel_mean = tl.sum(total, axis=0) * (1.0 / pixels.to(tl.float64))
    squares = tl.zeros([BLOCK_CHUNKS, channel.shape[0]], tl.float64)
    first_chunk = 0
    while first_chunk < chunks:
        chunk = first_chunk + tl.arange(0, BLOCK_CHUNKS)
        valid = (chunk < chunks)[:, None] & present[None, :]
        count = tl.minimum(pixels - chunk * CHUNK_PIXELS, CHUNK_PIXELS).to(tl.float64)
        offset = chunk[:, None] * 2 * channels + channel[None, :]
        mean = tl.load(start + offset, mask=valid, other=0.0).to(tl.float64)
        within = tl.load(start + channels + offset, mask=valid, other=0.0).to(tl.float64)
        deviation = mean - channel_mean[None, :]
        squares += tl.where(valid, within + count[:, None] * deviation * deviation, 0.0)
        first_chunk += BLOCK_CHUNKS
    return channel_mean, tl.sum(squares, axis=0)


@triton.jit(do_not_specialize=["pixels", "chunks", "group_channels", "add_stride"])
def _coefficients_kernel(
    x_partials_ptr,
    skip_partials_ptr,
    add_ptr,
    coefficients_ptr,
    eps: tl.float64,
    pixels,
    chunks,
    x_channels,
    skip_channels,
    group_channels,
    add_stride,
    CHUNK_PIXELS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    channels = x_channels + skip_channels
    sample, channel, present = groups_position(
        channels // group_channels, group_channels, BLOCK_GROUPS, BLOCK_CHANNELS
    )

    mean, squares = _channel_statistics(
        x_partials_ptr, sample, channel, present & (channel < x_channels), pixels, chunks,
        x_channels, CHUNK_PIXELS, BLOCK_CHUNKS,
    )  # fmt: skip
    if skip_partials_ptr is not None:
        skip_mean, skip_squares = _channel_statistics(
            skip_partials_ptr, sample, channel - x_channels, present & (channel >= x_channels),
            pixels, chunks, skip_channels, CHUNK_PIXELS, BLOCK_CHUNKS,
        )  # fmt: skip
        mean += skip_mean  # one of the two is 0
        squares += skip_squares
    shift = tl.zeros([BLOCK_GROUPS * BLOCK_CHANNELS], tl.float64)
    if add_ptr is not None:
        added = as_stored(add_ptr) + sample * add_stride
        shift = load_as(added, channel, present, tl.float32).to(tl.float64)

    shifted = tl.where(present, mean + shift, 0.0)
    group_mean = of_group(shifted, BLOCK_GROUPS, BLOCK_CHANNELS) * (1.0 / group_channels)
    deviation = tl.where(present, shifted - group_mean, 0.0)
    squares += deviation * deviation * pixels
    share = 1.0 / (group_channels * pixels.to(tl.float64))
    rstd = 1.0 / tl.sqrt(of_group(squares, BLOCK_GROUPS, BLOCK_CHANNELS) * share + eps)
    centre = group_mean - shift
    rounded = centre.to(tl.float32)

    row = coefficients_ptr + sample * 4 * channels + channel
    tl.store(row, rounded, mask=present)
    tl.store(row + channels, rstd.to(tl.float32), mask=present)
    tl.store(row + 2 * channels, ((rounded - centre) * rstd).to(tl.float32), mask=present)
    tl.store(row + 3 * channels, (deviation * rstd).to(tl.float32), mask=present)


@triton.jit
def parameters(coefficients_ptr, weight_ptr, bias_ptr, sample, column, present, channels):
    """Of a tile's columns, numbered in the concatenation: centre, rstd, offset, weight, bias."""
    row = coefficients_ptr + sample * 4 * channels + column
    centre = tl.load(row, mask=present, other=0.0)
    rstd = tl.load(row + channels, mask=present, other=0.0)
    offset = tl.load(row + 2 * channels, mask=present, other=0.0)
    weight = load_as(as_stored(weight_ptr), column, present, tl.float32)
    bias = load_as(as_stored(bias_ptr), column, present, tl.float32)
    return centre[None, :], rstd[None, :], offset[None, :], weight[None, :], bias[None, :]


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)), compiled to a few units in the last place."""
    if PTX:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [z * -1.4426950408889634], tl.float32, True, 1
        )
        gate = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1
        )
    else:
        gate = tl.sigmoid(z)
    return gate


@triton.jit
def kept_bits(seed_ptr, sample, quad, column, channels, bound):
    """Which elements dropout keeps: bit i is that of pixel 4 * quad + i in each column.

    Philox with seven rounds, which pass all of TestU01 (Salmon et al., SC 2011, table 2). The
    counter is (quad * channels + column, sample), 32 bits each, so that no two elements of a
    sample of up to 2^34, nor two samples, share a number. It does not depend on the tiles.
    """
    counter = quad[:, None] * channels + column[None, :]
    zero = counter * 0
    word0, word1, word2, word3 = tl.philox(
        tl.load(seed_ptr), counter, zero + sample.to(tl.int32), zero, zero, n_rounds=7
    )
    bits = (word0.to(tl.int32, bitcast=True) >= bound).to(tl.int32)
    bits |= (word1.to(tl.int32, bitcast=True) >= bound).to(tl.int32) << 1
    bits |= (word2.to(tl.int32, bitcast=True) >= bound).to(tl.int32) << 2
    bits |= (word3.to(tl.int32, bitcast=True) >= bound).to(tl.int32) << 3
    return bits


@triton.jit
def strip_rows(
    part, seed_ptr, sample, chunk, column, channels, bound, CHUNK: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """The quads of pixels of a part, and what dropout keeps of them: of no dropout, nothing."""
    quad = part * (BLOCK_PIXELS // STRIPS) + tl.arange(0, BLOCK_PIXELS // STRIPS)
    bits = 0
    if seed_ptr is not None:
        bits = kept_bits(seed_ptr, sample, chunk * (CHUNK // 4) + quad, column, channels, bound)
    return quad, bits


@triton.jit
def load_strip(source, quad, strip, pixels, channel, present, source_channels):
    """A strip of a part of x or skip: where it is, its pixels, what of it exists, its values."""
    row = quad * STRIPS + strip
    valid = (row < pixels)[:, None] & present[None, :]
    entry = row[:, None] * source_channels + channel[None, :]
    return entry, row, valid, load_as(source, entry, valid, tl.float32)


@triton.jit(do_not_specialize=["pixels"])
def _apply_kernel(
    source_ptr,
    coefficients_ptr,
    weight_ptr,
    bias_ptr,
    seed_ptr,
    y_ptr,
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
    """One chunk of x or skip."""
    CHUNK: tl.constexpr = PARTS * BLOCK_PIXELS
    sample, chunk, channel = tile_position(pixels, source_channels, CHUNK, BLOCK_CHANNELS)
    present = channel < source_channels
    column = first + channel
    centre, rstd, offset, weight, bias = parameters(
        coefficients_ptr, weight_ptr, bias_ptr, sample, column, present, channels
    )
    source = tile_pointer(source_ptr, sample, chunk, pixels, source_channels, CHUNK)
    y = tile_pointer(y_ptr, sample, chunk, pixels, channels, CHUNK)
    for part in range(PARTS):
        strip_row, bits = strip_rows(
            part, seed_ptr, sample, chunk, column, channels, bound, CHUNK, BLOCK_PIXELS
        )
        for strip in tl.static_range(STRIPS):
            _, row, valid, value = load_strip(
                source, strip_row, strip, pixels - chunk * CHUNK, channel, present, source_channels
            )
            z = ((value - centre) * rstd + offset) * weight + bias
            if SILU:
                z = z * sigmoid(z)
            if seed_ptr is not None:
                z = tl.where((bits >> strip) & 1 != 0, z * scale, 0.0)
            store_as(y, row[:, None] * channels + column[None, :], z, valid)


def coefficients(
    x_partials: Tensor,
    skip_partials: Tensor | None,
    add: Tensor | None,
    groups: int,
    eps: float,
    pixels: int,
    out: Tensor,
) -> None:
    """Combine partial statistics into what `apply` needs.

    Args:
        x_partials: (N, chunks, 2, C1) float32, from `channels_last.statistics`.
        skip_partials: (N, chunks, 2, C2) float32 of the skip. None: C2 is 0.
        add: (C,) or (N, C) of any dtype, added to every pixel. None: 0.
        groups: Number of groups; divides C.
        eps: Added to the variance.
        pixels: H * W.
        out: (N, COEFFICIENTS, C) float32, written.
    """
    samples, chunks, _, x_channels = x_partials.shape
    channels = out.shape[2]
    options = group_options(chunks, groups, channels // groups)
    if samples:
        _coefficients_kernel[(samples * triton.cdiv(groups, options["BLOCK_GROUPS"]),)](
            x_partials,
            skip_partials,
            add,
            out,
            eps,
            pixels,
            chunks,
            x_channels,
            channels - x_channels,
            channels // groups,
            channels if add is not None and add.dim() == 2 else 0,
            CHUNK_PIXELS=chunk_tile(samples, pixels, channels).chunk,
            **options,
        )


def apply(source: Tensor, first: int, norm: Normalisation, y: Tensor) -> None:
    """Normalise one of the two inputs into its channels of y.

    Args:
        source: (N, C1, H, W) x or (N, C2, H, W) skip, channels_last.
        first: Its first channel in y: 0 or C1.
        norm: What to do.
        y: (N, C, H, W), channels_last; as many channels as `source` has, from `first` on, written.
    """
    launch(
        _apply_kernel, source, source, tile_of=elementwise_tile, y_ptr=y,
        source_channels=source.shape[1], first=first, channels=y.shape[1], **norm.arguments(),
    )  # fmt: skip
