"""Images in the files of CIFAR-10's Python version, read without running what a pickle may ask for.

Layout: a folder `cifar-10-batches-py` with `data_batch_1` .. `data_batch_5`, `test_batch` and
`batches.meta`. A batch is a pickled dict of `data`, uint8 (N, 3 * side * side) with all reds of an
image before its greens and blues, and `labels`, a list of N numbers; `batches.meta` has
`label_names`. CIFAR-10 itself has ten classes and side 32; other images may have others.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pecker_fast.errors import PeckerError

__all__ = ["BATCHES", "FOLDER", "META", "read_class_names", "read_split"]

FOLDER = "cifar-10-batches-py"
META = "batches.meta"
BATCHES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The class names that `batches.meta` in `folder` lists, in the order of the labels.

    Raises:
        PeckerError: The file is missing, damaged or something else.
    """
    file = folder / META
    names = _read(file).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise PeckerError(f"{file}: expected a list label_names of class names, got {names!r}")
    return tuple(names)


def read_split(folder: Path, split: str, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a split.

    Args:
        folder: The folder with the batches.
        split: "train" or "test".
        num_classes: What labels must stay below.

    Returns:
        Images (N, 3, side, side) uint8 and labels (N,) int64.

    Raises:
        PeckerError: A batch is missing, damaged, of another size or without labels.
    """
    pixels: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for name in BATCHES[split]:
        file = folder / name
        rows, numbers = _read_batch(file, num_classes)
        if pixels and rows.shape[1] != pixels[0].shape[1]:
            raise PeckerError(
                f"{file}: rows of {rows.shape[1]} bytes, those of {BATCHES[split][0]} have "
                f"{pixels[0].shape[1]}; all images must be of one size"
            )
        pixels.append(rows)
        labels += numbers
    joined = np.concatenate(pixels)
    side = math.isqrt(joined.shape[1] // 3)
    images = torch.from_numpy(joined.reshape(-1, 3, side, side))
    return images, torch.tensor(labels, dtype=torch.int64)


def _read_batch(file: Path, num_classes: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    batch = _read(file)
    rows = batch.get("data")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows)
        raise PeckerError(f"{file}: expected data as uint8 (N, 3 * side * side), got {found}")
    side = math.isqrt(rows.shape[1] // 3)
    if side == 0 or 3 * side * side != rows.shape[1]:
        raise PeckerError(
            f"{file}: rows of {rows.shape[1]} bytes are no square colour images (3 * side * side)"
        )
    labels = batch.get("labels")
    if not isinstance(labels, list) or len(labels) != len(rows):
        found = f"{len(labels)}" if isinstance(labels, list) else "no list"
        raise PeckerError(f"{file}: expected a list of {len(rows)} labels, got {found}")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise PeckerError(
                f"{file}: label {label!r} is none of the {num_classes} classes in {META}"
            )
    return rows, labels


def _read(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            # latin1: Python 2 wrote the published files, and numpy's arrays in them are text.
            content = _DataUnpickler(stream, encoding="latin1").load()
    except FileNotFoundError:
        raise PeckerError(
            f"{file} is missing; CIFAR-10's layout is a folder {FOLDER} with "
            f"{', '.join((*BATCHES['train'], *BATCHES['test'], META))}"
        ) from None
    except _ForbiddenError as error:
        raise PeckerError(
            f"{file}: asks for {error}, which is not needed for images and could run code; "
            "such a file is not read: write arrays, lists, text and numbers only"
        ) from None
    except OSError as error:
        raise PeckerError(f"{file}: cannot be read ({error.strerror})") from None
    except MemoryError:
        raise
    except Exception as error:  # what a damaged pickle raises is not specified
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PeckerError(
            f"{file}: not a complete pickle file ({reason}); copy or download it again"
        ) from None
    if not isinstance(content, dict):
        raise PeckerError(f"{file}: expected a dict, got {type(content).__name__}")
    return content


class _ForbiddenError(Exception):
    """A pickle names something that it may not have."""


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old pickle protocols; `_codecs.encode` would do more."""
    if encoding != "latin1":
        raise _ForbiddenError(f"the encoding {encoding}")
    return text.encode("latin1")


# numpy's own functions, wherever this version has them: what an array is rebuilt with.
_ARRAY = np.zeros(1)
_ALLOWED: dict[str, Any] = {
    "_reconstruct": _ARRAY.__reduce__()[0],
    "_frombuffer": _ARRAY.__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class _DataUnpickler(pickle.Unpickler):
    """Dicts, lists, text, bytes, numbers and numpy arrays; nothing else is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that arrays and bytes are rebuilt with."""
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module.split(".")[0] == "numpy" and name in _ALLOWED:
            return _ALLOWED[name]
        raise _ForbiddenError(f"{module}.{name}")
