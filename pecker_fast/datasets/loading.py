"""Labelled images in memory: CIFAR-10, STL-10, Fashion-MNIST, and images of one's own.

CIFAR-10 and STL-10 come through torchvision, which compares every file with its published MD5 sum;
nothing is downloaded unless it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pecker_fast.datasets import DATASETS
from pecker_fast.datasets.image_files import ImageFiles, load_image_files
from pecker_fast.datasets.pixels import to_float
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.runs.classes import class_index

__all__ = ["ImageSet", "load_images", "read_images", "with_classes"]

_CIFAR10_FOLDER = "cifar-10-batches-py"
_STL10_SIDE = 64  # What the published STL-10 models see; the files hold 96x96 pixels.


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with a class label each."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64 on the CPU, in [0, len(class_names))
    class_names: tuple[str, ...]  # One name per class, by label
    source: str  # Where the images come from, in words, for reports

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise PeckerError(f"ImageSet: no images are left ({self.source})")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise PeckerError(
                f"ImageSet: labels from {int(self.labels.min())} to {int(self.labels.max())}, but "
                f"{len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image included."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, indices: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        """Images of `indices` (n,) as a network sees them, mirrored where `flip` (n,) says so.

        Returns:
            (n, C, H, W) float32 in [-1, 1].
        """
        pixels = self.images[indices.to(self.images.device)].to(device)
        if flip is not None:
            pixels = torch.where(flip.to(device)[:, None, None, None], pixels.flip(-1), pixels)
        return to_float(pixels)

    def to(self, device: torch.device) -> ImageSet:
        """The same with its pixels on a device, so that batches need not travel."""
        return replace(self, images=self.images.to(device))

    def without(self, label: int) -> ImageSet:
        """All images but those of one class; the other labels keep their numbers.

        Raises:
            PeckerError: nothing is left.
        """
        return self._where(self.labels != label, "without", label)

    def only(self, label: int) -> ImageSet:
        """The images of one class.

        Raises:
            PeckerError: it has no images.
        """
        return self._where(self.labels == label, "only", label)

    def select(self, indices: Tensor, what: str) -> ImageSet:
        """These images in this order, (n,) int64; `what` goes into the source."""
        images = self.images[indices.to(self.images.device)]
        return replace(
            self, images=images, labels=self.labels[indices], source=f"{self.source}, {what}"
        )

    def class_index(self, name: str | int) -> int:
        """The label of a class given by its name (case does not matter) or number.

        Raises:
            PeckerError: No such class; the message lists the classes.
        """
        return class_index(name, self.class_names, self.source)

    def fingerprint(self) -> str:
        """A hash (hex) of all pixels, labels and class names."""
        digest = hashlib.blake2b(repr(self.class_names).encode(), digest_size=32)
        for tensor in (self.images, self.labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _where(self, chosen: Tensor, word: str, label: int) -> ImageSet:
        return self.select(chosen.nonzero()[:, 0], f"{word} {self.class_names[label]!r}")


def with_classes(files: ImageFiles | ImageSet) -> ImageSet:
    """Images on disk as a labelled set; classes without names get numbers.

    Raises:
        PeckerError: the images have no classes.
    """
    if files.labels is None:
        raise PeckerError(
            f"{files.source}: the images have no classes; expected one sub-folder per class, or "
            "an .npz with labels"
        )
    names = files.class_names
    if names is None:  # as a model folder without names calls them
        names = tuple(f"class {index}" for index in range(int(files.labels.max()) + 1))
    return ImageSet(files.images, files.labels, names, files.source)


def load_images(dataset: str, root: Path | None, split: str, *, download: bool = False) -> ImageSet:
    """Read a data set into memory.

    Args:
        dataset: One of `DATASETS`. STL-10's 96x96 pixels are reduced to 64x64, as published.
        root: The folder that torchvision calls its root, so the parent of `cifar-10-batches-py` or
            `stl10_binary`; for Fashion-MNIST the folder with the four files, None = Debian's; for
            one's own "images" the parent of the folders `train` and `test`, one sub-folder per
            class in each, or of the files `train.npz` and `test.npz`.
        split: "train", "test", or "all": the training images before the test images.
        download: Fetch CIFAR-10 (170 MB) or STL-10 (2.6 GB) into `root` if it is not there.

    Raises:
        PeckerError: Nothing is there, or a file is missing, truncated or of another data set.
    """
    if dataset not in DATASETS:
        raise PeckerError(f"unknown data set {dataset!r}; known are {', '.join(DATASETS)}")
    parts = ("train", "test") if split == "all" else (split,)
    if dataset == "fashion-mnist":
        images, labels, names = _fashion_mnist(root, parts)
    else:
        root = _existing(dataset, root, download)
        if dataset == "cifar10":
            images, labels, names = _cifar10(root, parts, download)
        elif dataset == "stl10":
            images, labels, names = _stl10(root, parts, download)
        else:
            images, labels, names = _own_images(root, parts)
    words = {"train": "training images", "test": "test images", "all": "training and test images"}
    title = {"cifar10": "CIFAR-10", "stl10": "STL-10", "fashion-mnist": "Fashion-MNIST"}
    name = title.get(dataset) or (root or Path()).resolve().name
    height, width = images.shape[2:]
    source = f"{name}, {len(images):,} {words[split]}, {height}x{width}"
    return ImageSet(images, labels, names, source)


def read_images(
    ranks: Ranks, dataset: str, root: Path | None, split: str, download: bool
) -> ImageSet:
    """Read images on every process; only the first may download, and the others wait for it.

    Raises:
        PeckerError: see `load_images`.
    """
    read: list[ImageSet] = []
    ranks.first(lambda: read.append(load_images(dataset, root, split, download=download)))
    return read[0] if read else load_images(dataset, root, split)


_Loaded = tuple[Tensor, Tensor, tuple[str, ...]]


def _existing(dataset: str, root: Path | None, download: bool) -> Path:
    if root is None:
        raise PeckerError(f"--data-root is missing; name the folder where {dataset} lies")
    if root.name in (_CIFAR10_FOLDER, "stl10_binary"):
        raise PeckerError(f"--data-root {root}: name its parent, the folder that holds {root.name}")
    if not root.is_dir() and not download:
        raise PeckerError(f"--data-root {root}: no such folder")
    return root


def _cifar10(root: Path, parts: tuple[str, ...], download: bool) -> _Loaded:
    from torchvision.datasets import CIFAR10 as cls

    sets = [_verified(cls, root, download, train=part == "train") for part in parts]
    pixels = torch.cat([torch.from_numpy(one.data) for one in sets])
    labels = [label for one in sets for label in one.targets]
    images = pixels.permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels, dtype=torch.int64), tuple(sets[0].classes)


def _stl10(root: Path, parts: tuple[str, ...], download: bool) -> _Loaded:
    from torchvision.datasets import STL10 as cls

    sets = [_verified(cls, root, download, split=part) for part in parts]
    names = getattr(sets[0], "classes", None)
    if names is None:
        raise PeckerError(f"{root / cls.base_folder / cls.class_names_file} is missing")
    pixels = [_reduced(torch.from_numpy(one.data)) for one in sets]
    labels = [torch.from_numpy(one.labels).long() for one in sets]
    return torch.cat(pixels), torch.cat(labels), tuple(names)


def _own_images(root: Path, parts: tuple[str, ...]) -> _Loaded:
    sets = []
    for part in parts:
        places = [root / part, root / f"{part}.npz"]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise PeckerError(
                f"--data-root {root}: neither {part}/ with a sub-folder per class nor {part}.npz "
                "with arrays images, labels and class_names in it"
            )
        sets.append(with_classes(load_image_files(found)))
    first = sets[0]
    for other in sets[1:]:
        if (other.class_names, other.image_shape) != (first.class_names, first.image_shape):
            raise PeckerError(
                f"--data-root {root}: training and test images differ in classes or size: "
                f"{first.class_names} {first.image_shape}, {other.class_names} {other.image_shape}"
            )
    images, labels = (torch.cat([getattr(s, f) for s in sets]) for f in ("images", "labels"))
    return images, labels, first.class_names


def _fashion_mnist(root: Path | None, parts: tuple[str, ...]) -> _Loaded:
    from pecker_fast.datasets import fashion_mnist

    folder = fashion_mnist.DEFAULT_FOLDER if root is None else root
    read = [fashion_mnist.load_pixels(folder, part) for part in parts]
    images, labels = (torch.cat(column) for column in zip(*read, strict=True))
    return images, labels, fashion_mnist.CLASS_NAMES


def _reduced(pixels: Tensor) -> Tensor:
    """(N, 3, 96, 96) uint8 to (N, 3, 64, 64) by Pillow's bilinear filter, as published."""
    import numpy as np
    from PIL import Image

    rows, size = pixels.permute(0, 2, 3, 1).contiguous().numpy(), (_STL10_SIDE, _STL10_SIDE)
    reduced = [
        np.asarray(Image.fromarray(row).resize(size, Image.Resampling.BILINEAR)) for row in rows
    ]
    return torch.from_numpy(np.stack(reduced)).permute(0, 3, 1, 2).contiguous()


def _verified(cls: Callable[..., Any], root: Path, download: bool, **options: Any) -> Any:
    """A data set of torchvision, or what exactly is wrong with its files."""
    try:
        return cls(str(root), download=download, **options)
    except RuntimeError as error:  # "Dataset not found or corrupted", whatever the matter is
        raise PeckerError(_diagnosis(cls, root) or str(error)) from None
    except (OSError, ValueError) as error:  # URLError included; names of classes without an MD5
        action = "cannot be downloaded" if download else "cannot be read"
        raise PeckerError(f"{root}: {cls.__name__} {action} ({error})") from None


def _diagnosis(cls: Any, root: Path) -> str | None:
    """Which file torchvision does not want, and why."""
    folder = root / cls.base_folder
    if not folder.is_dir():
        return f"--data-root {root}: no {cls.base_folder} in it; --download fetches it"
    expected = [*cls.train_list, *cls.test_list]
    if hasattr(cls, "meta"):
        expected.append([cls.meta["filename"], cls.meta["md5"]])
    for name, md5 in expected:
        file = folder / name
        if not file.is_file():
            return f"{file} is missing; copy it again, or fetch all with --download"
        found = hashlib.md5(file.read_bytes()).hexdigest()
        if found != md5:
            return (
                f"{file}: not the published file (MD5 {found}, expected {md5}; "
                f"{file.stat().st_size:,} bytes); it may be truncated: delete {folder} and copy it "
                f"again, or fetch it with --download"
            )
    return None
