"""Images on disk: folders of PNG or JPEG files, flat or one sub-folder per class, and .npz files.

All are read as 8 bits a channel, what a PNG holds.
A folder that `pecker-fast sample` wrote says in its `samples.json` which sub-folder is which class
of the model; in any other the classes are the sub-folders, in the order of their names, as
torchvision's `ImageFolder` numbers them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, NonNegativeInt
from torch import Tensor

from pecker_fast.datasets.arrays import read_arrays
from pecker_fast.datasets.pixels import check_memory, open_image
from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json
from pecker_fast.progress import each
from pecker_fast.runs.reading import Names, Schema, checked

__all__ = ["SAMPLES_FILE", "ImageFiles", "images_in", "load_image_files", "read_image"]

SAMPLES_FILE = "samples.json"
"""Where a folder of samples says what made them."""

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY_MODES = ("1", "L", "LA")
_MOST_CLASSES = 100_000
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class ImageFiles:
    """Images that were read from disk."""

    images: Tensor  # (N, C, H, W) uint8; C is 1 where all of them are grey, else 3
    # (N,) int64 indices into `class_names`; None where the images have no classes.
    labels: Tensor | None
    # By index, classes without an image included; None where there are no names.
    class_names: tuple[str, ...] | None
    source: str  # the folder or file, as it was given
    # What drew them, where `pecker-fast sample` wrote them: model, sampler, counts.
    provenance: Mapping[str, Any] | None = None


def load_image_files(path: str | os.PathLike[str], progress: str | None = None) -> ImageFiles:
    """Read a folder of images or an .npz file.

    Args:
        path: a folder with PNG or JPEG files, flat or one sub-folder per class (hidden files are
            passed over); or an .npz with `images` (N, C, H, W) or `arr_0` (N, H, W, C), uint8, and
            optionally `labels` (N,) and `class_names`.
        progress: title of a progress bar on stderr; None for no bar.

    Raises:
        PeckerError: nothing there, no images, one that cannot be read, two sizes, images both
            beside and inside sub-folders, 16 bits a channel, or an .npz without such arrays.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, progress)
    if not path.exists():
        raise PeckerError(f"{path}: no such folder or file; expected a folder of images or an .npz")
    if path.suffix.lower() != ".npz":
        raise PeckerError(f"{path}: expected a folder of PNG or JPEG images, or an .npz file")
    return _load_npz(path)


def _load_folder(root: Path, progress: str | None) -> ImageFiles:
    flat = list(images_in(root))
    by_folder = {}
    for folder in _folders_in(root):
        by_folder[folder.name] = list(images_in(folder))
        deeper = [inner for inner in _folders_in(folder) if any(images_in(inner))]
        if deeper:
            raise PeckerError(
                f"{root}: images lie two folders deep, in {deeper[0]}; expected one folder per "
                f"class: give {folder}"
            )
    filled = {name: files for name, files in by_folder.items() if files}
    if flat and filled:
        raise PeckerError(
            f"{root}: images both beside its sub-folders ({flat[0].name}) and in them "
            f"({next(iter(filled))}); expected one or the other"
        )
    if flat:
        return ImageFiles(_read_all(flat, progress), None, None, str(root))
    if not filled:
        raise PeckerError(f"{root}: no images; expected PNG or JPEG files, or one folder per class")
    provenance = _provenance(root / SAMPLES_FILE)
    if provenance is None:  # an empty folder counts: its class has no images, but has its number
        names, numbers = tuple(by_folder), {name: i for i, name in enumerate(by_folder)}
    else:
        names = tuple(provenance["class_names"])
        numbers = {name: part["index"] for name, part in provenance["folders"].items()}
        if unknown := sorted(filled.keys() - numbers.keys()):
            raise PeckerError(
                f"{root}: {SAMPLES_FILE} knows no folder {unknown[0]!r}; remove one of them"
            )
    files = [file for part in filled.values() for file in part]
    labels = [numbers[name] for name, part in filled.items() for _ in part]
    images = _read_all(files, progress)
    return ImageFiles(images, torch.tensor(labels), names, str(root), provenance)


def images_in(folder: Path) -> Iterator[Path]:
    """Its image files in the order of their names; hidden ones may be half-written."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _folders_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


class _Folder(Schema):
    model_config = ConfigDict(extra="allow")

    index: NonNegativeInt


class _Samples(Schema):
    """Of `samples.json`, what is looked at here."""

    model_config = ConfigDict(extra="allow")

    class_names: Names
    folders: dict[str, _Folder]


def _provenance(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    content = read_json(file)
    samples = checked(_Samples, content, f"{file} (remove it to take the sub-folders as classes)")
    if not all(part.index < len(samples.class_names) for part in samples.folders.values()):
        raise PeckerError(f"{file}: class indices must lie in [0, {len(samples.class_names)})")
    return dict(content)


def _read_all(files: list[Path], progress: str | None) -> Tensor:
    """(N, C, H, W) uint8."""
    images: Tensor | None = None
    for index, file in enumerate(each(files, progress, unit="image")):
        pixels = read_image(file)
        if images is None:
            size = f"{pixels.shape[2]}x{pixels.shape[1]}"
            check_memory(
                len(files) * 3 * pixels[0].numel(),
                f"{file.parent}: {len(files):,} images of {size}",
            )
            images = torch.empty(len(files), *pixels.shape, dtype=torch.uint8)
        if pixels.shape[1:] != images.shape[2:]:
            sizes = [f"{shape[-1]}x{shape[-2]}" for shape in (images.shape, pixels.shape)]
            raise PeckerError(
                f"images of two sizes: {files[0]} is {sizes[0]}, {file} is {sizes[1]} (width x "
                "height); all must have one size"
            )
        if len(pixels) > images.shape[1]:
            images = images.repeat(1, len(pixels), 1, 1)  # all before were grey
        images[index] = pixels
    assert images is not None  # for the type checker: there is a file
    return images


def read_image(path: Path) -> Tensor:
    """A PNG or JPEG file of 8 bits a channel, (1 or 3, H, W) uint8.

    Raises:
        PeckerError: it cannot be read, or has another depth.
    """
    image = open_image(path)
    if image.mode in GREY_MODES:
        pixels = np.array(image.convert("L"))[..., None]
    elif image.mode in COLOUR_MODES:
        pixels = np.array(image.convert("RGB"))
    else:  # Pillow would clip 16 bits to 8
        raise PeckerError(f"{path}: expected 8 bits a channel, got mode {image.mode}")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _load_npz(path: Path) -> ImageFiles:
    file = read_arrays(path, ("images", "arr_0", "labels", "class_names"))
    key = next((k for k in ("images", "arr_0") if k in file), None)
    if key is None:
        raise PeckerError(
            f"{path}: expected an array images (N, C, H, W) or arr_0 (N, H, W, C), there is neither"
        )
    pixels, labels, names = file[key], file.get("labels"), file.get("class_names")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or 0 in pixels.shape:
        raise PeckerError(
            f"{path}: {key} must be uint8 with four dimensions and not empty, "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or len(names) == 0):
        raise PeckerError(
            f"{path}: class_names must be a list of texts, got {names.dtype} {names.shape}"
        )
    # The evaluator of guided-diffusion, whose files have arr_0, keeps channels last.
    images = torch.from_numpy(pixels)
    if key == "arr_0":
        images = images.permute(0, 3, 1, 2).contiguous()
    if images.shape[1] not in (1, 3):
        raise PeckerError(
            f"{path}: {key} must have 1 or 3 channels, got {tuple(images.shape[1:])} as (C, H, W)"
        )
    numbers = None
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise PeckerError(
                f"{path}: labels must be {len(images)} whole numbers, one per image, "
                f"got {labels.dtype} {labels.shape}"
            )
        numbers = torch.from_numpy(labels.astype(np.int64))
        least, most = int(numbers.min()), int(numbers.max())
        classes = _MOST_CLASSES if names is None else len(names)
        if least < 0 or most >= classes:
            raise PeckerError(f"{path}: labels must lie in [0, {classes}), got {least} to {most}")
    class_names = None if names is None or numbers is None else tuple(names.tolist())
    return ImageFiles(images, numbers, class_names, str(path))
