"""How the kernels of a U-Net's blocks walk activations: channels_last, (N, P, C) with P = H * W.

A program takes a chunk of pixels and a block of channels of one sample, tile after tile, so that
what it does once (numbers of the channels, sums across threads) counts less. What is summed over
pixels is first written per sample, chunk and channel, and combined by a second launch in a fixed
order: no atomics, and any group of channels, from one tensor or two, can be made of it.

Bytes: `statistics` and `channel_sums` read an element once and write 8 (4) a chunk and channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from pecker_fast.kernels.elements import INTERPRETING, load_as, store_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = [
    "Tile",
    "add_deviations",
    "as_stored",
    "channel_sums",
    "chunk_tile",
    "chunks_of",
    "column_sums",
    "elementwise_tile",
    "launch",
    "programs",
    "statistics",
    "store_partials",
    "store_statistics",
    "tile_options",
    "tile_pointer",
    "tile_position",
]

# 64 channels are rows of 128 bytes in bfloat16. A program of the interpreter costs half a
# millisecond, whatever its size; Triton bounds a block at 2^20 elements.
_MOST_PIXELS = 512 if INTERPRETING else 128
_MOST_CHANNELS = 1024 if INTERPRETING else 64
_MOST_PARTS = 4
_ENOUGH_CHUNKS = 1 if INTERPRETING else 256  # of all samples: some for each multiprocessor
_ELEMENTS_PER_WARP = 1024  # 32 a thread: four 16-byte accesses in flight in bfloat16


class Tile(NamedTuple):
    """What a program takes of a sample: `parts` times (pixels, channels), all powers of 2."""

    pixels: int
    channels: int
    parts: int

    @property
    def chunk(self) -> int:
        """Pixels of all parts."""
        return self.pixels * self.parts


def chunk_tile(samples: int, pixels: int, channels: int) -> Tile:
    """The tile of a kernel that sums over pixels. Its pixels do not depend on the channels.

    So partial sums of the two halves of a concatenation, made apart, have the same chunks.
    """
    # Four at least: dropout draws for four pixels at a time.
    size = min(max(4, triton.next_power_of_2(pixels)), _MOST_PIXELS)
    parts = 1
    while 2 * parts <= _MOST_PARTS and parts * size < pixels:
        if samples * -(-pixels // (2 * parts * size)) < _ENOUGH_CHUNKS:
            break
        parts *= 2
    return Tile(size, min(triton.next_power_of_2(channels), _MOST_CHANNELS), parts)


def elementwise_tile(samples: int, pixels: int, channels: int) -> Tile:
    """The tile of a kernel that sums nothing: half as large, so that more are in flight."""
    tile = chunk_tile(samples, pixels, channels)
    return tile if INTERPRETING else tile._replace(pixels=min(tile.pixels, _MOST_PIXELS // 2))


def tile_options(tile: Tile) -> dict[str, Any]:
    """Blocks and options of a launch. No bits of another backend are asked for: fusion is on."""
    warps = tile.pixels * tile.channels // _ELEMENTS_PER_WARP
    return {
        "PARTS": tile.parts,
        "BLOCK_PIXELS": tile.pixels,
        "BLOCK_CHANNELS": tile.channels,
        "num_warps": min(max(1, warps), 8),
        "enable_fp_fusion": True,
    }


def programs(tile: Tile, samples: int, pixels: int, channels: int) -> int:
    """How many there are for (samples, pixels, channels)."""
    return samples * -(-pixels // tile.chunk) * -(-channels // tile.channels)


@triton.jit
def as_stored(pointer):
    """The pointer as `load_as` and `store_as` take it: bfloat16 as int16."""
    DTYPE: tl.constexpr = pointer.dtype.element_ty
    if DTYPE == tl.bfloat16:
        pointer = pointer.to(tl.pointer_type(tl.int16))
    return pointer


@triton.jit
def tile_position(pixels, channels, CHUNK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Sample, first pixel and channels of this program.

    Blocks of channels vary fastest: programs that run together read whole rows.
    """
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    chunks = tl.cdiv(pixels, CHUNK)
    program = tl.program_id(0)
    channel = (program % blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    chunk = (program // blocks) % chunks
    sample = (program // blocks) // chunks
    return sample.to(tl.int64), chunk, channel


@triton.jit
def tile_pointer(pointer, sample, chunk, pixels, channels, CHUNK: tl.constexpr):
    """Where a chunk of (N, pixels, channels) starts: int64 up to here, int32 within the chunk."""
    return as_stored(pointer) + (sample * pixels + chunk * CHUNK) * channels


@triton.jit
def add_deviations(value, valid, centre, sums, squares):
    """The sums over parts of value - centre and its square, one more part added."""
    deviation = tl.where(valid, value - centre[None, :], 0.0)
    return sums + _fold(deviation), squares + _fold(deviation * deviation)


@triton.jit
def _fold(values):
    """The sums of a tile's four quarters, all in the registers of one thread."""
    quarters = tl.reshape(values, [4, values.shape[0] // 4, values.shape[1]])
    return tl.sum(quarters, axis=0)


@triton.jit
def store_statistics(
    partials_ptr, sample, chunk, pixels, channels, channel, present, count, centre, sums, squares,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Write mean and squared deviations of a chunk of `count` pixels, from those about `centre`.

    The centre is the mean of the first part, which is a quarter of the chunk or more; whatever the
    values are, a quarter of the squares about it or more then stays, and little cancels. Of one
    part the correction is what rounding has left in its mean: without it a mean of 100 would be
    off by an ulp or two.
    """
    correction = tl.sum(sums, axis=0) / count
    about_mean = tl.sum(squares, axis=0) - count * correction * correction
    chunks = tl.cdiv(pixels, CHUNK)
    store_partials(
        partials_ptr, sample, chunk, chunks, channels, channel, present, centre + correction,
        about_mean,
    )  # fmt: skip


@triton.jit
def store_partials(partials_ptr, sample, chunk, chunks, channels, channel, present, first, second):
    """Write a chunk's two numbers a channel into (N, chunks, 2, channels) float32."""
    row = partials_ptr + (sample * chunks + chunk) * 2 * channels
    tl.store(row + channel, first, mask=present)
    tl.store(row + channels + channel, second, mask=present)


@triton.jit(do_not_specialize=["pixels"])
def _statistics_kernel(
    x_ptr,
    partials_ptr,
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
    start = tile_pointer(x_ptr, sample, chunk, pixels, channels, CHUNK)
    centre = tl.zeros([BLOCK_CHANNELS], tl.float32)
    sums = tl.zeros([BLOCK_PIXELS // 4, BLOCK_CHANNELS], tl.float32)
    squares = tl.zeros([BLOCK_PIXELS // 4, BLOCK_CHANNELS], tl.float32)
    for part in tl.static_range(PARTS):
        row = part * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        valid = (row < count)[:, None] & present[None, :]
        value = load_as(start, row[:, None] * channels + channel[None, :], valid, tl.float32)
        if part == 0:
            centre = tl.sum(value, axis=0) / tl.minimum(count, BLOCK_PIXELS)
        sums, squares = add_deviations(value, valid, centre, sums, squares)
    store_statistics(
        partials_ptr, sample, chunk, pixels, channels, channel, present, count, centre, sums,
        squares, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["pixels"])
def _channel_sums_kernel(
    x_ptr,
    sums_ptr,
    pixels,
    channels,
    PARTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    CHUNK: tl.constexpr = PARTS * BLOCK_PIXELS
    sample, chunk, channel = tile_position(pixels, channels, CHUNK, BLOCK_CHANNELS)
    present = channel < channels
    start = tile_pointer(x_ptr, sample, chunk, pixels, channels, CHUNK)
    total = tl.zeros([BLOCK_PIXELS, BLOCK_CHANNELS], tl.float32)
    for part in tl.static_range(PARTS):
        row = part * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        valid = (row < pixels - chunk * CHUNK)[:, None] & present[None, :]
        total += load_as(start, row[:, None] * channels + channel[None, :], valid, tl.float32)
    sums = sums_ptr + (sample * tl.cdiv(pixels, CHUNK) + chunk) * channels
    tl.store(sums + channel, tl.sum(total, axis=0), mask=present)


@triton.jit
def _store_column_sum(
    table_ptr, out_ptr, scale, rows, row_length, channel, present, BLOCK_ROWS: tl.constexpr
):
    """The sums of one column of the table, times `scale`."""
    total = tl.zeros([BLOCK_ROWS, channel.shape[0]], tl.float32)
    first_row = 0
    while first_row < rows:
        row = (first_row + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        valid = (row < rows)[:, None] & present[None, :]
        total += tl.load(
            table_ptr + row[:, None] * row_length + channel[None, :], mask=valid, other=0.0
        )
        first_row += BLOCK_ROWS
    store_as(as_stored(out_ptr), channel, tl.sum(total, axis=0) * scale, present)


@triton.jit(do_not_specialize=["rows", "row_length"])
def _column_sums_kernel(
    table_ptr,
    first_ptr,
    second_ptr,
    scale: tl.float32,
    rows,
    row_length,
    channels,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    present = channel < channels
    if first_ptr is not None:
        _store_column_sum(
            table_ptr, first_ptr, scale, rows, row_length, channel, present, BLOCK_ROWS
        )
    if second_ptr is not None:
        _store_column_sum(
            table_ptr + channels, second_ptr, scale, rows, row_length, channel, present, BLOCK_ROWS
        )


def launch(
    kernel: Any, x: Tensor, *arguments: Any, tile_of: Callable[..., Tile] = chunk_tile, **named: Any
) -> None:
    """Run a kernel over the chunks of pixels and the blocks of channels of x, if it has some.

    Args:
        kernel: Takes `pixels`, and `tile_options`.
        x: (N, C, H, W), channels_last.
        arguments: Of the kernel.
        tile_of: (N, H * W, C) -> what a program takes.
        named: Of the kernel.
    """
    samples, channels, height, width = x.shape
    pixels = height * width
    tile = tile_of(samples, pixels, channels)
    if grid := programs(tile, samples, pixels, channels):
        kernel[(grid,)](*arguments, pixels=pixels, **named, **tile_options(tile))


def chunks_of(samples: int, pixels: int) -> int:
    """How many chunks the statistics of each sample have."""
    return -(-pixels // chunk_tile(samples, pixels, 1).chunk)


def statistics(x: Tensor, partials: Tensor) -> None:
    """Mean and sum of squared deviations of every channel in every chunk of pixels.

    Args:
        x: (N, C, H, W) float32, bfloat16 or float16, channels_last.
        partials: (N, chunks_of(N, H * W), 2, C) float32, written.
    """
    launch(_statistics_kernel, x, x, partials, channels=x.shape[1])


def channel_sums(x: Tensor, sums: Tensor) -> None:
    """The sum of every channel in every chunk of pixels.

    Args:
        x: (N, C, H, W) float32, bfloat16 or float16, channels_last.
        sums: (N, chunks_of(N, H * W), C) float32, written.
    """
    launch(_channel_sums_kernel, x, x, sums, channels=x.shape[1])


def column_sums(
    table: Tensor, first: Tensor | None, second: Tensor | None, scale: float = 1.0
) -> None:
    """Sum a table of partial sums over its rows.

    Args:
        table: (R, K, C) float32, contiguous.
        first: (C,) of any dtype, written: scale * sum of table[:, 0]. None: not wanted.
        second: (C,) of any dtype, written: scale * sum of table[:, 1]. None: not wanted.
        scale: A factor.
    """
    rows, columns, channels = table.shape
    block = min(triton.next_power_of_2(channels), _MOST_CHANNELS // 4)
    grid = (triton.cdiv(channels, block),)
    if grid[0] and not (first is None and second is None):
        _column_sums_kernel[grid](
            table,
            first,
            second,
            scale,
            rows,
            columns * channels,
            channels,
            BLOCK_ROWS=256,
            BLOCK_CHANNELS=block,
            num_warps=4,
            enable_fp_fusion=True,
        )
