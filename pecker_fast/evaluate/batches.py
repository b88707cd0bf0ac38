"""Images drawn batch by batch: whose noise, which process, one progress bar.

The noise of image i depends on the seed and on i alone, not on the batch size, the device, how many
images follow it, or how many processes share the work. What is left of the batch size is rounding:
several processes draw the same batches as one, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pecker_fast.distributed import Ranks
from pecker_fast.progress import Progress

__all__ = ["Batches", "Draw", "Tell", "draw_batches", "together"]

Tell: TypeAlias = Callable[[float], object]
"""Takes the share, in [0, 1], of a batch's steps that are done."""

Draw: TypeAlias = Callable[[slice, Tensor, Tell], Tensor]
"""From (which images, starting noise (n, C, H, W) float32 on the CPU, tell) to n images."""

Batches: TypeAlias = Iterator[tuple[slice, Tensor]]
"""Which images, and the images (n, ...) on the CPU."""


def draw_batches(
    draw: Draw,
    total: int,
    batch_size: int,
    shape: tuple[int, ...],
    seed: int | Sequence[int],
    only: Collection[int] | None = None,
    progress: str | None = None,
) -> Batches:
    """Draw some of the batches of `total` images.

    Args:
        draw: makes images of noise.
        total: number of images.
        batch_size: images at a time; batch k holds the images from k * batch_size on.
        shape: (C, H, W) of one image's noise.
        seed: of the noise of all images, or of each image's own.
        only: numbers of the batches to draw; None: all.
        progress: title of a progress bar on stderr, moved on within a batch; None for no bar.
    """
    generator = torch.Generator()
    if isinstance(seed, int):
        generator.manual_seed(seed)
    starts = range(0, total, batch_size)
    parts = [slice(start, min(start + batch_size, total)) for start in starts]
    wanted = set(range(len(parts)) if only is None else only)
    count = sum(parts[k].stop - parts[k].start for k in wanted)
    with Progress(progress, count) as bar:
        for number, part in enumerate(parts[: max(wanted, default=-1) + 1]):
            # One call per image: torch's generator gives other numbers for other shapes. Those of
            # batches that are not wanted come first in the stream all the same.
            noise = []
            for index in range(part.start, part.stop):
                if not isinstance(seed, int):
                    generator.manual_seed(seed[index])
                noise.append(torch.randn(shape, generator=generator))
            if number in wanted:
                tell = _within(bar, len(noise))
                yield part, draw(part, torch.stack(noise), tell).cpu()
                tell(1.0)


def together(
    batches: Callable[[range, str | None], Batches],
    total: int,
    batch_size: int,
    like: Tensor,
    ranks: Ranks,
    progress: str | None,
) -> Tensor | None:
    """What all processes draw, each its share of the batches.

    Args:
        batches: (numbers of the batches to draw, title of a progress bar or None) -> the batches.
        total: number of images.
        batch_size: images of a batch; the last one may have fewer.
        like: of the shape and dtype of an image, on the CPU.
        ranks: the processes.
        progress: title of the first process's bar.

    Returns:
        (N, ...) in order on the first process, None on the others.
    """
    count = -(-total // batch_size)
    share = ranks.rows(count)
    # Whole batches, so that each process sends rows of one shape.
    rows = like.new_zeros(share.stop - share.start, batch_size, *like.shape)
    title = progress if ranks.is_first and len(rows) else None
    for part, images in batches(range(share.start, share.stop), title):
        rows[part.start // batch_size - share.start, : len(images)] = images
    gathered = ranks.gather(rows, count)
    return None if gathered is None else gathered.flatten(0, 1)[:total]


def _within(bar: Progress, count: int) -> Tell:
    """What moves the bar on to a share of the batch that comes next on it, in whole images."""
    before = bar.n
    return lambda share: bar.update(before + int(share * count) - bar.n)
