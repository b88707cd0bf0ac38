"""Fashion-MNIST from its four IDX files (Debian: package dataset-fashion-mnist, MIT licence)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["CLASS_NAMES", "DEFAULT_FOLDER", "load_pixels"]

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_MOST = 70_000  # images in all, of both splits
_STEMS = {"train": "train", "test": "t10k"}


def load_pixels(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read one split as it is stored: images (N, 1, 28, 28) uint8 and labels (N,) int64.

    Raises:
        PeckerError: a file is missing, truncated or not an IDX file.
    """
    stem = _STEMS[split]
    pixels = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz", (28, 28))
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", ())
    if len(pixels) != len(labels):
        raise PeckerError(f"{folder}: {len(pixels)} {split} images but {len(labels)} labels")
    return pixels[:, None], labels.long()


def _read_idx(file: Path, shape: tuple[int, ...]) -> Tensor:
    """(count, *shape) uint8; no more is unpacked than a data set of this size takes."""
    item = math.prod(shape)
    try:
        with gzip.open(file) as opened:
            head, body = opened.read(8 + 4 * len(shape)), opened.read(_MOST * item)
    except (OSError, EOFError, zlib.error) as error:
        raise PeckerError(
            f"{file}: cannot be read ({error}); install Debian's package dataset-fashion-mnist, or "
            "name the folder with the four Fashion-MNIST files"
        ) from error
    # Unsigned bytes (8) and the number of dimensions, then each of them.
    expected = np.array([(8 << 8) + 1 + len(shape), len(body) // item, *shape], ">u4").tobytes()
    if head != expected or not body or len(body) % item:
        raise PeckerError(
            f"{file}: not a complete IDX file of {' x '.join(map(str, (*shape, 'bytes')))}; its "
            f"header is {head.hex(' ', 4)}; copy it again"
        )
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(-1, *shape)
