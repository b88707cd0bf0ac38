"""Images from disk: what is read, and what is refused in one clear line."""

import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
from image_data import (
    FOLDER,
    random_images,
    write_cifar,
    write_images,
)
from PIL import Image

from pecker_fast.datasets import DATASETS, fashion_mnist
from pecker_fast.datasets.loading import ImageSet, load_images
from pecker_fast.errors import PeckerError

CPU = torch.device("cpu")
NAMES = ("circle", "square", "star")
torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def files(tmp_path):
    """60 + 12 images of 3 classes in CIFAR-10's layout; the arrays that were written."""
    train, test = random_images(60, 3), random_images(12, 3, seed=1)
    write_cifar(tmp_path, train, test, NAMES)
    return tmp_path, train, test


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
        order = np.concatenate(
            [train[1].argsort(kind="stable"), 25 + test[1].argsort(kind="stable")]
        )
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
    with pytest.raises(PeckerError, match=r"neither test/ .* nor test\.npz"):
        load_images("images", tmp_path, "test")


# ---- CIFAR-10 and STL-10 through torchvision


def test_cifar10_is_what_torchvision_reads(files, monkeypatch):
    root, train, test = files
    cls = torchvision.datasets.CIFAR10
    # torchvision reads 32x32 only.
    train, test = random_images(60, 3, side=32), random_images(12, 3, side=32, seed=1)
    write_cifar(root, train, test, NAMES)
    published_md5(monkeypatch, cls, root)
    images = load_images("cifar10", root, "all")
    assert torch.equal(images.images, torch.from_numpy(np.concatenate([train[0], test[0]])))
    assert torch.equal(images.labels, torch.from_numpy(np.concatenate([train[1], test[1]])))
    assert images.images.is_contiguous()
    assert images.source == "CIFAR-10, 72 training and test images, 32x32"
    torchvision_sees = cls(str(root))[17][0]
    assert np.array_equal(np.asarray(torchvision_sees), images.images[17].permute(1, 2, 0).numpy())


def test_truncated_download_names_the_file(files, monkeypatch):
    root, _, _ = files
    published_md5(monkeypatch, torchvision.datasets.CIFAR10, root)
    os.truncate(root / FOLDER / "test_batch", 1000)
    with pytest.raises(PeckerError, match=r"test_batch: not the published file.*1,000 bytes"):
        load_images("cifar10", root, "train")
    (root / FOLDER / "test_batch").unlink()
    with pytest.raises(PeckerError, match="test_batch is missing"):
        load_images("cifar10", root, "train")


def write_stl10(root, counts=(6, 4)):
    """Random STL-10 files; returns the images as PIL shows them, (N, 96, 96, 3), and labels."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    shown, labels = [], []
    for part, count in zip(("train", "test"), counts, strict=True):
        pixels = generator.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        # The files hold colour, then columns, then rows; labels from 1.
        (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        numbers = (np.arange(count) % 3 + 1).astype(np.uint8)
        (folder / f"{part}_y.bin").write_bytes(numbers.tobytes())
        shown.append(pixels)
        labels.append(numbers.astype(np.int64) - 1)
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(NAMES))
    return np.concatenate(shown), np.concatenate(labels)


def test_stl10_is_reduced_as_published(tmp_path, monkeypatch):
    """The published code: torchvision's Resize(64) of the PIL image, then its pixels."""
    shown, labels = write_stl10(tmp_path)
    published_md5(monkeypatch, torchvision.datasets.STL10, tmp_path)
    images = load_images("stl10", tmp_path, "all")
    assert images.image_shape == (3, 64, 64)
    assert images.labels.tolist() == labels.tolist()
    assert images.class_names == NAMES
    resize = torchvision.transforms.Resize(64)
    for image, pixels in zip(images.images, shown, strict=True):
        expected = np.asarray(resize(Image.fromarray(pixels)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_stl10_with_names_that_are_no_text(tmp_path, monkeypatch):
    write_stl10(tmp_path)  # torchvision has an MD5 sum for every file but this one
    (tmp_path / "stl10_binary" / "class_names.txt").write_bytes(b"\xff\xfe")
    published_md5(monkeypatch, torchvision.datasets.STL10, tmp_path)
    with pytest.raises(PeckerError, match="STL10 cannot be read"):
        load_images("stl10", tmp_path, "train")


def test_stl10_without_labels_is_refused(tmp_path, monkeypatch):
    write_stl10(tmp_path)
    published_md5(monkeypatch, torchvision.datasets.STL10, tmp_path)
    (tmp_path / "stl10_binary" / "train_y.bin").unlink()
    with pytest.raises(PeckerError, match=r"train_y\.bin is missing"):
        load_images("stl10", tmp_path, "train")


# ---- where nothing is


@pytest.mark.parametrize(("dataset", "module"), [("cifar10", "cifar"), ("stl10", "stl10")])
def test_nothing_is_downloaded_unless_asked_for(tmp_path, dataset, module, monkeypatch):
    asked = []
    fetch = f"torchvision.datasets.{module}.download_and_extract_archive"
    monkeypatch.setattr(fetch, lambda *a, **k: asked.append(a))
    with pytest.raises(PeckerError, match="--download fetches it"):
        load_images(dataset, tmp_path, "train")
    assert not asked
    with pytest.raises(PeckerError):  # the pretended download brings nothing
        load_images(dataset, tmp_path, "train", download=True)
    assert len(asked) == 1


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(PeckerError, match=r"CIFAR10 cannot be downloaded \(no route to host\)"):
        load_images("cifar10", tmp_path, "train", download=True)


def test_unknown_names(tmp_path):
    with pytest.raises(PeckerError, match=f"unknown data set 'mnist'; known are {DATASETS[0]}"):
        load_images("mnist", tmp_path, "train")


# ---- Fashion-MNIST


def test_fashion_mnist_pixels_and_their_values(tmp_path):
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for name, header, body in (
        ("t10k-images-idx3-ubyte.gz", [2051, 4, 28, 28], pixels.tobytes()),
        ("t10k-labels-idx1-ubyte.gz", [2049, 4], bytes([9, 0, 3, 3])),
    ):
        head = b"".join(number.to_bytes(4, "big") for number in header)
        (tmp_path / name).write_bytes(gzip.compress(head + body))
    images = load_images("fashion-mnist", tmp_path, "test")
    assert np.array_equal(images.images[:, 0].numpy(), pixels)
    assert images.labels.tolist() == [9, 0, 3, 3]
    as_network_sees, _ = fashion_mnist.load_split(tmp_path, "test")
    assert torch.equal(images.batch(torch.arange(4), CPU), as_network_sees)


# ---- what is done with images


@pytest.fixture
def images():
    pixels, labels = random_images(12, 3)
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels), NAMES, "a test")


def test_batch_is_in_minus_one_to_one(images):
    chosen = torch.tensor([3, 3, 0])
    batch = images.batch(chosen, CPU)
    assert batch.dtype == torch.float32
    expected = images.images[chosen].double() / 255 * 2 - 1
    torch.testing.assert_close(batch.double(), expected, rtol=0, atol=1e-7)
    extremes = ImageSet(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1),
        torch.tensor([0, 1]), ("a", "b"), "",
    )  # fmt: skip
    assert extremes.batch(torch.arange(2), CPU).flatten().tolist() == [-1.0, 1.0]


def test_batch_mirrors_the_chosen_ones_only(images):
    chosen, flip = torch.tensor([1, 2, 5]), torch.tensor([True, False, True])
    plain, flipped = images.batch(chosen, CPU), images.batch(chosen, CPU, flip)
    assert torch.equal(flipped[1], plain[1])
    for row in (0, 2):
        assert torch.equal(flipped[row], plain[row][:, :, torch.arange(7, -1, -1)])


def test_without_and_only_are_the_two_parts(images):
    kept, gone = images.without(1), images.only(1)
    assert len(kept) + len(gone) == len(images)
    assert set(kept.labels.tolist()) == {0, 2}
    assert set(gone.labels.tolist()) == {1}
    assert torch.equal(gone.images, images.images[1::3])
    assert kept.class_names == gone.class_names == NAMES
    assert kept.source == "a test, without 'square'"
    assert gone.source == "a test, only 'square'"
    with pytest.raises(PeckerError, match=r"no images are left \(a test, without 'square', only"):
        kept.only(1)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 3], "from 0 to 3, but 3 cl"), ([-1, 0], "labels from -1")]
)
def test_labels_must_have_names(labels, message):
    with pytest.raises(PeckerError, match=message):
        ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor(labels), NAMES, "")
