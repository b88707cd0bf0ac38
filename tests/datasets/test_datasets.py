"""Labelled images: what each data set is read as, and what is refused."""

import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
from image_data import random_images, write_cifar, write_images
from PIL import Image

from pecker_fast.datasets.fashion_mnist import CLASS_NAMES, DEFAULT_FOLDER, load_pixels
from pecker_fast.datasets.loading import ImageSet, load_images
from pecker_fast.errors import PeckerError

CPU = torch.device("cpu")
NAMES = ("circle", "square", "star")
torchvision = pytest.importorskip("torchvision")


def published_md5(monkeypatch, cls, root):
    """Let torchvision take what lies under `root` for the published files."""

    def md5(name):
        content = (root / cls.base_folder / name).read_bytes()
        return hashlib.md5(content).hexdigest()

    for attribute in ("train_list", "test_list"):
        renewed = [[name, md5(name)] for name, _ in getattr(cls, attribute)]
        monkeypatch.setattr(cls, attribute, renewed)
    if hasattr(cls, "meta"):
        monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(cls.meta["filename"])})


# ---- images of one's own


def write_folders(root, train, test, names):
    for part, (images, labels) in (("train", train), ("test", test)):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / part / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:03d}.png")


@pytest.mark.parametrize("write", [write_images, write_folders])
def test_own_images_are_read_as_they_were_written(tmp_path, write):
    train, test = random_images(25, 3), random_images(7, 3, seed=1)
    write(tmp_path / "mine", train, test, NAMES)
    images = load_images("images", tmp_path / "mine", "all")
    order = np.arange(32)
    if write is write_folders:  # class by class
        order = np.concatenate([np.argsort(train[1], kind="stable"), 25 + np.argsort(test[1])])
    assert np.array_equal(images.images, np.concatenate([train[0], test[0]])[order])
    assert np.array_equal(images.labels, np.concatenate([train[1], test[1]])[order])
    assert (images.class_names, images.image_shape) == (NAMES, (3, 8, 8))
    assert images.source == "mine, 32 training and test images, 8x8"
    assert len(load_images("images", tmp_path / "mine", "test")) == 7


@pytest.mark.parametrize("test", [random_images(4, 2, side=16), random_images(4, 2)])
def test_own_images_of_two_kinds_are_refused(tmp_path, test):
    write_images(tmp_path, random_images(4, 2), test, NAMES)
    np.savez(tmp_path / "test.npz", images=test[0], labels=test[1])  # without names
    with pytest.raises(PeckerError, match="differ in classes or size"):
        load_images("images", tmp_path, "all")
    (tmp_path / "test.npz").unlink()
    with pytest.raises(PeckerError, match=r"test\.npz"):
        load_images("images", tmp_path, "test")


# ---- CIFAR-10 and STL-10 through torchvision


def test_cifar10_is_what_torchvision_reads(tmp_path, monkeypatch):
    cls = torchvision.datasets.CIFAR10
    # torchvision reads 32x32 only.
    train, test = random_images(60, 3, side=32), random_images(12, 3, side=32, seed=1)
    write_cifar(tmp_path, train, test, NAMES)
    published_md5(monkeypatch, cls, tmp_path)
    images = load_images("cifar10", tmp_path, "all")
    assert torch.equal(images.images, torch.from_numpy(np.concatenate([train[0], test[0]])))
    assert torch.equal(images.labels, torch.from_numpy(np.concatenate([train[1], test[1]])))
    assert images.images.is_contiguous()
    assert images.source == "CIFAR-10, 72 training and test images, 32x32"
    os.truncate(tmp_path / cls.base_folder / "test_batch", 1000)
    with pytest.raises(PeckerError, match="cifar-10-batches-py"):
        load_images("cifar10", tmp_path, "train")


def test_stl10_is_reduced_as_published(tmp_path, monkeypatch):
    """The published code: torchvision's Resize(64) of the PIL image, then its pixels."""
    cls, generator = torchvision.datasets.STL10, np.random.default_rng(0)
    folder = tmp_path / cls.base_folder
    folder.mkdir()
    pixels = generator.integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
    labels = (np.arange(10) % 3).astype(np.uint8)
    for part, rows in (("train", slice(0, 6)), ("test", slice(6, 10))):
        # The files hold colour, then columns, then rows; labels from 1.
        (folder / f"{part}_X.bin").write_bytes(pixels[rows].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels[rows] + 1).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(NAMES))
    published_md5(monkeypatch, cls, tmp_path)
    images = load_images("stl10", tmp_path, "all")
    assert (images.image_shape, images.class_names) == ((3, 64, 64), NAMES)
    assert images.labels.tolist() == labels.tolist()
    resize = torchvision.transforms.Resize(64)
    for image, shown in zip(images.images, pixels, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(resize(Image.fromarray(shown))))
    # torchvision has an MD5 sum for every file but this one.
    (folder / "class_names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(PeckerError, match="stl10_binary"):
        load_images("stl10", tmp_path, "train")


@pytest.mark.parametrize(("dataset", "module"), [("cifar10", "cifar"), ("stl10", "stl10")])
def test_nothing_is_downloaded_unless_asked_for(tmp_path, dataset, module, monkeypatch):
    asked = []

    def fail(*args, **kwargs):
        asked.append(args)
        raise OSError("no route to host")

    fetch = f"torchvision.datasets.{module}.download_and_extract_archive"
    monkeypatch.setattr(fetch, fail)
    with pytest.raises(PeckerError, match="--download"):
        load_images(dataset, tmp_path, "train")
    assert not asked
    with pytest.raises(PeckerError, match="no route to host"):
        load_images(dataset, tmp_path, "train", download=True)
    assert len(asked) == 1


def test_unknown_names(tmp_path):
    with pytest.raises(PeckerError, match="'mnist'"):
        load_images("mnist", tmp_path, "train")


# ---- Fashion-MNIST


def write_idx(folder, images=None, labels=(9, 0, 3, 3)):
    """Random pixels, (4, 28, 28) uint8, and labels as the test images."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for name, header, body in (
        ("t10k-images-idx3-ubyte.gz", [2051, 4, 28, 28], pixels.tobytes()),
        ("t10k-labels-idx1-ubyte.gz", [2049, len(labels)], bytes(labels)),
    ):
        head = b"".join(number.to_bytes(4, "big") for number in header)
        (folder / name).write_bytes(gzip.compress(head + body))
    return pixels


def test_fashion_mnist_pixels_and_their_values(tmp_path):
    pixels = write_idx(tmp_path)
    images = load_images("fashion-mnist", tmp_path, "test")
    assert np.array_equal(images.images[:, 0].numpy(), pixels)
    assert images.labels.tolist() == [9, 0, 3, 3]
    with pytest.raises(PeckerError, match="dataset-fashion-mnist"):
        load_pixels(tmp_path, "train")
    write_idx(tmp_path, labels=(1, 2))
    with pytest.raises(PeckerError, match="4 test images but 2 labels"):
        load_pixels(tmp_path, "test")
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    with pytest.raises(PeckerError, match="not a complete IDX file"):
        load_pixels(tmp_path, "test")


def test_real_fashion_mnist():
    if not DEFAULT_FOLDER.is_dir():
        pytest.skip(f"no {DEFAULT_FOLDER}: install Debian's package dataset-fashion-mnist")
    images, labels = load_pixels(DEFAULT_FOLDER, "test")
    assert images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [1000] * len(CLASS_NAMES)
    assert (images.min(), images.max()) == (0, 255)


# ---- what is done with images


@pytest.fixture
def images():
    pixels, labels = random_images(12, 3)
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels), NAMES, "a test")


def test_batch_is_in_minus_one_to_one_and_mirrors_the_chosen_ones_only(images):
    chosen, flip = torch.tensor([3, 3, 0]), torch.tensor([True, False, True])
    batch, flipped = images.batch(chosen, CPU), images.batch(chosen, CPU, flip)
    assert batch.dtype == torch.float32
    expected = images.images[chosen].double() / 255 * 2 - 1
    torch.testing.assert_close(batch.double(), expected, rtol=0, atol=1e-7)
    assert torch.equal(flipped[1], batch[1])
    assert torch.equal(flipped[[0, 2]], batch[[0, 2]].flip(-1))


def test_without_and_only_are_the_two_parts(images):
    kept, gone = images.without(1), images.only(1)
    assert len(kept) + len(gone) == len(images)
    assert set(kept.labels.tolist()) == {0, 2}
    assert set(gone.labels.tolist()) == {1}
    assert torch.equal(gone.images, images.images[1::3])
    assert kept.class_names == gone.class_names == NAMES
    assert kept.source == "a test, without 'square'"
    with pytest.raises(PeckerError, match=r"no images are left"):
        kept.only(1)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_must_have_names(labels):
    with pytest.raises(PeckerError, match="3 class names"):
        ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor(labels), NAMES, "")
