"""Generated images of any kind, for judges: tensors, PIL images, files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pecker_fast.datasets.pixels import open_image, to_pil
from pecker_fast.errors import PeckerError

__all__ = ["ImageLike", "batches", "image_tensor", "pil_image"]

# (3, H, W) in [0, 1], a PIL image of any mode, or the path of an image file.
ImageLike: TypeAlias = "Tensor | Image.Image | str | os.PathLike[str]"


def image_tensor(image: ImageLike) -> Tensor:
    """(3, H, W) float32 in [0, 1] on the CPU, from any kind of image.

    Raises:
        PeckerError: a file that is no image, a tensor of another shape or range, or neither.
    """
    if not isinstance(image, Tensor):
        pixels = torch.from_numpy(np.array(pil_image(image)))
        return pixels.permute(2, 0, 1).float() / 255
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise PeckerError(f"image: must be a tensor (3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise PeckerError(f"image: must be floating point in [0, 1], got {image.dtype}")
    image = image.detach().cpu().float()
    low, high = image.aminmax()
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise PeckerError(
            f"image: values must lie in [0, 1], got {float(low):g} to {float(high):g}; "
            "images in [-1, 1] become that by (x / 2 + 0.5).clamp(0, 1)"
        )
    return image


def pil_image(image: ImageLike) -> Image.Image:
    """RGB with 8 bits a channel, rounded to the nearest: what a saved PNG would hold.

    Raises:
        PeckerError: as `image_tensor`.
    """
    if isinstance(image, Tensor):
        return to_pil((image_tensor(image) * 255).round().to(torch.uint8))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, str | os.PathLike):
        raise PeckerError(
            f"image: must be a tensor (3, H, W), a PIL image or a path, got {type(image).__name__}"
        )
    return open_image(image).convert("RGB")


def batches(
    images: Iterable[ImageLike], batch_size: int, progress: str | None = None
) -> Iterator[list[ImageLike]]:
    """Lists of `batch_size` images, the last one shorter; paths stay paths until they are used."""
    if batch_size < 1:
        raise PeckerError(f"batch size: must be at least 1, got {batch_size}")
    iterator = iter(tqdm(images, desc=progress, unit="image", disable=progress is None))
    while batch := list(islice(iterator, batch_size)):
        yield batch
