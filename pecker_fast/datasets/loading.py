"""Labelled images in memory: CIFAR-10, STL-10, Fashion-MNIST, and images of one's own.

CIFAR-10 and STL-10 come through torchvision, which compares every file with its published MD5 sum;
nothing is downloaded unless it is asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pecker_fast.datasets import DATASETS, fashion_mnist
from pecker_fast.datasets.image_files import ImageFiles, load_image_files
from pecker_fast.datasets.pixels import to_float
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.runs.classes import class_index

__all__ = ["ImageSet", "load_images", "read_images", "with_classes"]

_TITLES = {"cifar10": "CIFAR-10", "stl10": "STL-10", "fashion-mnist": "Fashion-MNIST"}
_FOLDERS = {"cifar10": "cifar-10-batches-py", "stl10": "stl10_binary"}
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
        kept = (self.labels != label).nonzero()[:, 0]
        return self.select(kept, f"without {self.class_names[label]!r}")

    def only(self, label: int) -> ImageSet:
        """The images of one class.

        Raises:
            PeckerError: it has no images.
        """
        kept = (self.labels == label).nonzero()[:, 0]
        return self.select(kept, f"only {self.class_names[label]!r}")

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
    if root is None and dataset != "fashion-mnist":
        raise PeckerError(f"--data-root is missing; name the folder where {dataset} lies")
    folder = root or fashion_mnist.DEFAULT_FOLDER
    name = _TITLES.get(dataset) or folder.resolve().name
    sets = []
    for part in ("train", "test") if split == "all" else (split,):
        if dataset == "fashion-mnist":
            pixels, labels = fashion_mnist.load_pixels(folder, part)
            sets.append(ImageSet(pixels, labels, fashion_mnist.CLASS_NAMES, name))
        elif dataset == "images":
            sets.append(_own_images(folder, part))
        else:
            sets.append(_published(dataset, folder, part, download))
    first, last = sets[0], sets[-1]
    if (first.class_names, first.image_shape) != (last.class_names, last.image_shape):
        raise PeckerError(
            f"--data-root {folder}: training and test images differ in classes or size: "
            f"{first.class_names} {first.image_shape}, {last.class_names} {last.image_shape}"
        )
    images, labels = (torch.cat([getattr(s, part) for s in sets]) for part in ("images", "labels"))
    words = {"train": "training images", "test": "test images", "all": "training and test images"}
    height, width = first.image_shape[1:]
    source = f"{name}, {len(images):,} {words[split]}, {height}x{width}"
    return ImageSet(images, labels, first.class_names, source)


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


def _published(dataset: str, root: Path, part: str, download: bool) -> ImageSet:
    """CIFAR-10 or STL-10 as torchvision reads it, once every file has its published MD5 sum."""
    from torchvision import datasets, transforms

    read: Any
    try:
        if dataset == "cifar10":
            read = datasets.CIFAR10(str(root), part == "train", download=download)
        else:
            reduce = transforms.Resize(_STL10_SIDE)  # of a PIL image, as published
            read = datasets.STL10(str(root), part, transform=reduce, download=download)
        names = tuple(read.classes)
    except (RuntimeError, OSError, ValueError, AttributeError) as error:
        raise PeckerError(
            f"--data-root {root}: {_TITLES[dataset]} cannot be read ({error}); name the folder "
            f"that holds {_FOLDERS[dataset]} as it was published; --download fetches it"
        ) from None
    images, labels = zip(*((np.asarray(image), label) for image, label in read), strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, torch.tensor(labels, dtype=torch.int64), names, _TITLES[dataset])


def _own_images(root: Path, part: str) -> ImageSet:
    found = next((p for p in (root / part, root / f"{part}.npz") if p.exists()), None)
    if found is None:
        raise PeckerError(
            f"--data-root {root}: neither {part}/ with a sub-folder per class nor {part}.npz "
            "with arrays images, labels and class_names in it"
        )
    return with_classes(load_image_files(found))
