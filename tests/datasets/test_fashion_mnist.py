"""The IDX reader, on files made here and on the real ones where they are installed."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from pecker_fast.datasets.fashion_mnist import CLASS_NAMES, DEFAULT_FOLDER, load_split
from pecker_fast.errors import PeckerError


def idx(header: list[int], body: bytes) -> bytes:
    return gzip.compress(b"".join(n.to_bytes(4, "big") for n in header) + body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(idx([2051, 2, 28, 28], pixels))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx([2049, 2], bytes([3, 9])))
    return tmp_path


def test_reads_pixels_and_labels(folder: Path) -> None:
    images, labels = load_split(folder, "train")
    assert images.shape == (2, 1, 28, 28)
    assert labels.tolist() == [3, 9]
    assert images[0, 0, 0, 0] == -1.0
    assert images[0, 0, 9, 3] == 1.0  # pixel 255
    assert images[1, 0, 0, 0] == pytest.approx(784 % 256 / 127.5 - 1)


def test_missing_file_names_the_package(folder: Path) -> None:
    with pytest.raises(PeckerError, match="dataset-fashion-mnist"):
        load_split(folder, "test")


def test_real_files() -> None:
    if not DEFAULT_FOLDER.is_dir():
        pytest.skip(f"no {DEFAULT_FOLDER}: install Debian's package dataset-fashion-mnist")
    images, labels = load_split(DEFAULT_FOLDER, "test")
    assert images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [1000] * len(CLASS_NAMES)
    assert (images.min(), images.max()) == (-1, 1)
