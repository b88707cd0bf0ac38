"""Images on disk: folders of PNG or JPEG files, flat or one sub-folder per class, and .npz files.

All are read as 8 bits a channel, what a PNG holds.
A folder that `pecker-fast sample` wrote says in its `samples.json` which sub-folder is which class
of the model; in any other the classes are the sub-folders, in the order of their names, as
torchvision's `ImageFolder` numbers them.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, NonNegativeInt
from torch import Tensor

from pecker_fast.datasets.pixels import check_memory, open_image
from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json
from pecker_fast.progress import each
from pecker_fast.runs.reading import Names, Schema, checked

__all__ = ["SAMPLES_FILE", "ImageFiles", "images_in", "load_image_files", "read_image"]

SAMPLES_FILE = "samples.json"
"""Where a folder of samples says what made them."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
_MOST_CLASSES = 100_000


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
    if not path.is_file() or path.suffix.lower() != ".npz":
        raise PeckerError(f"{path}: expected a folder of PNG or JPEG images, or an .npz file")
    return _load_npz(path)


def _load_folder(root: Path, progress: str | None) -> ImageFiles:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    by_folder = {folder.name: list(images_in(folder)) for folder in folders}
    flat, filled = list(images_in(root)), {name for name, files in by_folder.items() if files}
    if bool(flat) == bool(filled):
        raise PeckerError(
            f"{root}: expected PNG or JPEG files, or one folder of them per class, found "
            f"{'both' if flat else 'neither'}; name the folder that directly holds either"
        )
    if flat:
        return ImageFiles(_read_all(flat, progress), None, None, str(root))
    provenance = _provenance(root / SAMPLES_FILE)
    if provenance is None:  # an empty folder counts: its class has no images, but has its number
        names, numbers = tuple(by_folder), {name: i for i, name in enumerate(by_folder)}
    else:
        names = tuple(provenance["class_names"])
        numbers = {name: part["index"] for name, part in provenance["folders"].items()}
        if unknown := sorted(filled - numbers.keys()):
            raise PeckerError(
                f"{root}: {SAMPLES_FILE} knows no folder {unknown[0]!r}; remove one of them"
            )
    labels = [numbers[name] for name, files in by_folder.items() for _ in files]
    images = _read_all([file for files in by_folder.values() for file in files], progress)
    return ImageFiles(images, torch.tensor(labels), names, str(root), provenance)


def images_in(folder: Path) -> Iterator[Path]:
    """Its image files in the order of their names; hidden ones may be half-written."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


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
    images = torch.empty(0, 1, 0, 0, dtype=torch.uint8)
    for index, file in enumerate(each(files, progress)):
        pixels = read_image(file)
        width, height = pixels.shape[2], pixels.shape[1]
        if index == 0:
            what = f"{file.parent}: {len(files):,} images of {width}x{height}"
            check_memory(len(files) * 3 * width * height, what)
            images = torch.empty(len(files), *pixels.shape, dtype=torch.uint8)
        if (height, width) != images.shape[2:]:
            raise PeckerError(
                f"{file}: is {width}x{height}, but {files[0].name} is {images.shape[3]}x"
                f"{images.shape[2]} (width x height); all images must have one size"
            )
        if len(pixels) > images.shape[1]:
            images = images.repeat(1, len(pixels), 1, 1)  # all before were grey
        images[index] = pixels
    return images


def read_image(path: Path) -> Tensor:
    """A PNG or JPEG file of 8 bits a channel, (1 or 3, H, W) uint8.

    Raises:
        PeckerError: it cannot be read, or has another depth.
    """
    image = open_image(path)
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to 8
        raise PeckerError(f"{path}: expected 8 bits a channel, got mode {image.mode}")
    pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def _load_npz(path: Path) -> ImageFiles:
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(sum(part.file_size for part in archive.infolist()), path)
        with np.load(path, allow_pickle=False) as file:
            known = ("images", "arr_0", "labels", "class_names")
            arrays = {name: np.asarray(file[name]) for name in known if name in file}
    except PeckerError:
        raise
    except Exception as error:  # numpy, zipfile and its decompressors raise many kinds
        raise PeckerError(f"{path}: cannot be read as an .npz file ({error})") from error
    key = "images" if "images" in arrays else "arr_0"
    pixels, labels, names = arrays.get(key), arrays.get("labels"), arrays.get("class_names")
    if pixels is not None and key == "arr_0" and pixels.ndim == 4:
        # The evaluator of guided-diffusion, whose files have arr_0, keeps channels last.
        pixels = pixels.transpose(0, 3, 1, 2)
    if not (
        pixels is not None and pixels.dtype == np.uint8 and pixels.ndim == 4
        and pixels.size > 0 and pixels.shape[1] in (1, 3)
    ):  # fmt: skip
        raise _unfit(path, arrays, "images (N, C, H, W) or arr_0 (N, H, W, C), uint8, C 1 or 3")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or names.size == 0):
        raise _unfit(path, arrays, "class_names as a list of texts")
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    if labels is None:
        return ImageFiles(images, None, None, str(path))
    most = _MOST_CLASSES if names is None else len(names)
    if (
        labels.shape != (len(images),)
        or labels.dtype.kind not in "iu"
        or not (0 <= labels.min() and labels.max() < most)
    ):
        raise _unfit(path, arrays, f"a label for each image, whole numbers in [0, {most})")
    class_names = None if names is None else tuple(names.tolist())
    return ImageFiles(images, torch.from_numpy(labels.astype(np.int64)), class_names, str(path))


def _unfit(path: Path, arrays: Mapping[str, Any], expected: str) -> PeckerError:
    found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
    return PeckerError(f"{path}: expected {expected}; found {found or 'none of them'}")
