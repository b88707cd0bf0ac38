"""Writes data sets for tests, as .npz files and in CIFAR-10's layout; Fashion-MNIST in colour."""

import pickle

import numpy as np

from pecker_fast.datasets import fashion_mnist

FOLDER = "cifar-10-batches-py"
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


def write_images(root, train, test, names):
    """Write pairs of images, uint8 (N, 3, S, S), and labels (N,) for `--dataset images`."""
    root.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in (("train", train), ("test", test)):
        np.savez(root / f"{part}.npz", images=images, labels=labels, class_names=np.array(names))


def write_cifar(root, train, test, names):
    """The same as CIFAR-10 is laid out, for torchvision."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    parts = zip(np.array_split(train[0], 5), np.array_split(train[1], 5), strict=True)
    for name, (images, labels) in [*zip(TRAIN, parts, strict=True), ("test_batch", test)]:
        batch = {"labels": labels.tolist(), "data": images.reshape(len(images), -1)}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(names)}))


def fashion_in_colour(split, count, classes=10):
    """The first `count` images of the first `classes` classes: (count, 3, 32, 32) uint8, labels.

    Black borders of two pixels; three equal colours.
    """
    pixels, labels = fashion_mnist.load_pixels(fashion_mnist.DEFAULT_FOLDER, split)
    chosen = (labels < classes).nonzero()[:count, 0]
    padded = np.pad(pixels[chosen].numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    return np.repeat(padded, 3, axis=1), labels[chosen].numpy()


def random_images(count, classes, side=8, seed=0):
    """(count, 3, side, side) uint8 noise, and labels that take turns."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return pixels, np.arange(count) % classes
