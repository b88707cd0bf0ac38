"""Images as networks see them, floats in [-1, 1], and as files hold them, 8 bits a channel."""

from __future__ import annotations

import os
import struct

import torch
from PIL import Image
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["open_image", "to_float", "to_pil", "to_uint8"]


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] with 8 bits a channel, rounded to the nearest: the pixels of their PNGs."""
    return ((images.clamp(-1.0, 1.0) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]; floats as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_pil(pixels: Tensor) -> Image.Image:
    """(1 or 3, H, W) uint8 as a grey or colour image."""
    picture = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(picture.contiguous().cpu().numpy())


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """A PNG or JPEG file in memory, in its own mode.

    Raises:
        PeckerError: it is missing, or cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise PeckerError(f"image {path}: no such file") from None
    except (
        OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # What Pillow's plug-ins raise for broken files and for huge images.
        raise PeckerError(
            f"{path}: cannot be read as an image ({error}); remove it or copy it again"
        ) from error
