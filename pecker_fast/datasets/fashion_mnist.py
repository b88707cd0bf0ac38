"""Fashion-MNIST from its four IDX files (Debian: package dataset-fashion-mnist, MIT licence)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

from pecker_fast.datasets.pixels import to_float
from pecker_fast.errors import PeckerError

__all__ = ["CLASS_NAMES", "DEFAULT_FOLDER", "load_pixels", "load_split"]

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_STEMS = {"train": "train", "test": "t10k"}


def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one split as a network sees it.

    Args:
        folder: where the .gz files lie.
        split: "train" (60,000 images) or "test" (10,000).

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
    pixels = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz", header=16)
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", header=8)
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy())
    if len(images) != len(labels):
        raise PeckerError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    return images, torch.from_numpy(labels.astype(np.int64))


def _read_idx(file: Path, header: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    if not file.is_file():
        raise PeckerError(
            f"{file} is missing; install Debian's package dataset-fashion-mnist, "
            "or name the folder with the four Fashion-MNIST files"
        )
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise PeckerError(f"{file}: not a complete gzip file ({error}); copy it again") from error
    count = int.from_bytes(content[4:8], "big")
    body = np.frombuffer(content, dtype=np.uint8, offset=header)
    if count == 0 or len(body) % count:
        raise PeckerError(f"{file}: an IDX header of {count} items does not fit {len(body)} bytes")
    return body
