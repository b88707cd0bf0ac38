"""Writes data sets in CIFAR-10's file layout, for tests: Fashion-MNIST as 32x32 colour images."""

import pickle

import numpy as np

from pecker_fast.datasets import fashion_mnist

FOLDER = "cifar-10-batches-py"
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


def write_cifar(root, train, test, names, protocol=2):
    """Write pairs of images, uint8 (N, 3, S, S), and labels (N,) as CIFAR-10 is laid out."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    parts = zip(np.array_split(train[0], 5), np.array_split(train[1], 5), strict=True)
    for name, (images, labels) in [*zip(TRAIN, parts, strict=True), ("test_batch", test)]:
        write_pickle(folder / name, batch(images, labels, name), protocol)
    meta = {"num_cases_per_batch": len(train[0]) // 5, "label_names": list(names)}
    write_pickle(folder / "batches.meta", meta, protocol)
    return folder


def batch(images, labels, name="a batch"):
    return {
        "batch_label": name,
        "labels": [int(label) for label in labels],
        "data": np.ascontiguousarray(images.reshape(len(images), -1)),
        "filenames": [f"{index}.png" for index in range(len(images))],
    }


def write_pickle(file, content, protocol=2):
    file.write_bytes(pickle.dumps(content, protocol=protocol))


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
