"""Fashion-MNIST from its four IDX files (Debian: package dataset-fashion-mnist, MIT licence)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pecker_fast.datasets.pixels import to_float
from pecker_fast.errors import PeckerError

__all__ = ["CLASS_NAMES", "DEFAULT_FOLDER", "load_pixels", "load_split"]

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_MOST = 70_000  # images in all, of both splits
_STEMS = {"train": "train", "test": "t10k"}


def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one split as a network sees it.

    Returns:
        Images (N, 1, 28, 28) float32 in [-1, 1] and labels (N,) int64.

    Raises:
        PeckerError: a file is missing, truncated or not an IDX file.
    """
    pixels, labels = load_pixels(folder, split)
    return to_float(pixels), labels


def load_pixels(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one split as it is stored: images (N, 1, 28, 28) uint8 and labels (N,) int64.

    Raises:
        PeckerError: as in `load_split`.
    """
    stem = _STEMS[split]
    pixels = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz", (28, 28))
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", ())
    if len(pixels) != len(labels):
        raise PeckerError(f"{folder}: {len(pixels)} {split} images but {len(labels)} labels")
    return torch.from_numpy(pixels[:, None].copy()), torch.from_numpy(labels.astype(np.int64))


def _read_idx(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """(count, *shape); no more is unpacked than that takes."""
    if not file.is_file():
        raise PeckerError(
            f"{file} is missing; install Debian's package dataset-fashion-mnist, "
            "or name the folder with the four Fashion-MNIST files"
        )
    magic = bytes([0, 0, 8, 1 + len(shape)])  # unsigned bytes, and how many dimensions
    item = math.prod(shape)
    try:
        with gzip.open(file) as opened:
            head = opened.read(8 + 4 * len(shape))
            count, *found = (int(size) for size in np.frombuffer(head[4:], dtype=">u4"))
            if not head.startswith(magic) or tuple(found) != shape or not 0 < count <= _MOST:
                raise ValueError(f"its header is {head.hex(' ', 4)}")
            body = opened.read(count * item + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise PeckerError(
            f"{file}: not a complete IDX file of {' x '.join(map(str, (*shape, 'bytes')))} in "
            f"gzip ({error}); copy it again"
        ) from error
    if len(body) != count * item:
        raise PeckerError(
            f"{file}: holds {'more' if len(body) > count * item else 'fewer'} than the {count:,} "
            "items that its header tells of; copy it again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(count, *shape)
