"""Folders and .npz files of images: what is read, in which order, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from pecker_fast.datasets.image_files import load_image_files
from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.errors import PeckerError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def write(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def test_a_flat_folder_in_the_order_of_the_names(tmp_path):
    for name, pixels in zip(("b.png", "a.png", "c.PNG"), COLOUR, strict=False):
        write(tmp_path / name, pixels)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".b.123.tmp.png").write_bytes(b"half")  # what a killed writer leaves
    read = load_image_files(tmp_path)
    expected = torch.from_numpy(COLOUR[[1, 0, 2]]).permute(0, 3, 1, 2)
    assert torch.equal(read.images, expected)
    assert (read.labels, read.class_names, read.source) == (None, None, str(tmp_path))


def test_one_folder_per_class_as_torchvision_numbers_them(tmp_path):
    for index, name in enumerate(("star", "circle", "circle", "star")):
        write(tmp_path / name / f"{index}.png", GREY[index])
    (tmp_path / "square").mkdir()
    read = load_image_files(tmp_path)
    assert read.class_names == ("circle", "square", "star")
    assert read.labels.tolist() == [0, 0, 2, 2]
    assert read.labels.dtype == torch.int64
    assert torch.equal(read.images[:, 0], torch.from_numpy(GREY[[1, 2, 0, 3]]))

    datasets = pytest.importorskip("torchvision").datasets
    theirs = datasets.ImageFolder(tmp_path, allow_empty=True)
    assert theirs.classes == list(read.class_names)
    assert theirs.targets == read.labels.tolist()


def test_samples_json_says_which_class_a_folder_holds(tmp_path):
    write(tmp_path / "02_star" / "0.png", GREY[0])
    folders = {"02_star": {"index": 2, "count": 1}}
    names = ["circle", "square", "star"]
    (tmp_path / "samples.json").write_text(json.dumps({"folders": folders, "class_names": names}))
    read = load_image_files(tmp_path)
    assert (read.labels.tolist(), read.class_names) == ([2], tuple(names))

    write(tmp_path / "other" / "0.png", GREY[0])
    with pytest.raises(PeckerError, match="knows no folder 'other'"):
        load_image_files(tmp_path)
    (tmp_path / "samples.json").write_text('{"folders": {"02_star": 2}, "class_names": []}')
    with pytest.raises(PeckerError, match=r"samples\.json"):
        load_image_files(tmp_path)
    (tmp_path / "samples.json").write_text(json.dumps({"folders": folders, "class_names": ["a"]}))
    with pytest.raises(PeckerError, match=r"must lie in \[0, 1\)"):
        load_image_files(tmp_path)


@pytest.mark.parametrize("grey_first", [True, False])
def test_grey_images_become_three_channels_only_among_coloured_ones(tmp_path, grey_first):
    write(tmp_path / f"{'ac'[not grey_first]}.png", GREY[0])
    assert load_image_files(tmp_path).images.shape == (1, 1, 4, 6)
    write(tmp_path / "b.png", COLOUR[0])
    images = load_image_files(tmp_path).images
    grey, colour = images if grey_first else images.flip(0)
    assert torch.equal(grey, torch.from_numpy(GREY[0]).expand(3, 4, 6))
    assert torch.equal(colour, torch.from_numpy(COLOUR[0]).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("RGB", 3)]
)
def test_modes(tmp_path, mode, channels):
    write(tmp_path / "a.png", COLOUR[0], mode)
    assert load_image_files(tmp_path).images.shape == (1, channels, 4, 6)


def test_jpeg(tmp_path):
    flat = np.full((4, 6, 3), 200, np.uint8)
    for name in ("a.jpg", "b.JPEG"):
        write(tmp_path / name, flat)
    images = load_image_files(tmp_path).images
    assert images.shape == (2, 3, 4, 6)
    assert (images.int() - 200).abs().max() <= 2  # JPEG loses a little


def test_npz(tmp_path):
    images = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)
    labels = np.array([0, 2, 1, 1, 0], np.int32)
    np.savez(
        tmp_path / "a.npz", images=images, labels=labels, class_names=np.array(["x", "y", "z"])
    )
    read = load_image_files(tmp_path / "a.npz")
    assert torch.equal(read.images, images)
    assert read.labels.tolist() == labels.tolist()
    assert read.labels.dtype == torch.int64
    assert read.class_names == ("x", "y", "z")

    np.savez(tmp_path / "evaluator.npz", COLOUR)  # arr_0, channels last
    read = load_image_files(tmp_path / "evaluator.npz")
    assert torch.equal(read.images, images)
    assert (read.labels, read.class_names) == (None, None)


def test_more_pixels_than_memory(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=GREY[:, None])
    monkeypatch.setattr("os.sysconf", lambda name: 4)
    with pytest.raises(PeckerError, match="this machine has"):
        load_image_files(tmp_path / "a.npz")


def test_an_image_too_large_is_refused_before_its_pixels_are_read(tmp_path, monkeypatch):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was read"))
    with pytest.raises(PeckerError, match=r"large\.png: is 12,000x12,000"):
        load_image_files(tmp_path)


def test_to_uint8():
    images = torch.tensor([-2.0, -1.0, -1 + 0.9 / 127.5, 0.004, 1.0, 3.0])
    assert to_uint8(images).tolist() == [0, 0, 1, 128, 255, 255]
