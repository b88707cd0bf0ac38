"""Images as networks see them, floats in [-1, 1], and as files hold them, 8 bits a channel."""

from __future__ import annotations

import os

import torch
from PIL import Image
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["check_memory", "open_image", "to_float", "to_pil", "to_uint8"]

_MOST_PIXELS = 4096 * 4096  # of a file: a compressed one of some kB may stand for gigabytes


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


def check_memory(size: int, source: object) -> None:
    """Refuse `size` bytes of images that this machine cannot hold.

    Raises:
        PeckerError: it has less memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise PeckerError(
            f"{source}: {size / 1e9:,.1f} GB of pixels, and this machine has {memory / 1e9:.1f} GB "
            "of memory; give fewer images, or smaller ones"
        )


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """A PNG or JPEG file in memory, in its own mode.

    Raises:
        PeckerError: it is missing, too large, or cannot be read.
    """
    if not os.path.isfile(path):
        raise PeckerError(f"image {path}: no such file")
    try:
        # Other formats may be larger machines; EPS is a program that Ghostscript runs.
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise PeckerError(
                    f"{path}: is {width:,}x{height:,} pixels, expected at most {_MOST_PIXELS:,}; "
                    "give a smaller image"
                )
            image.load()
            return image
    except PeckerError:
        raise
    except Exception as error:  # Pillow's plug-ins raise many kinds for broken files
        raise PeckerError(
            f"{path}: cannot be read as a PNG or JPEG image ({str(error)[:300]}); remove it or "
            "copy it again"
        ) from error
