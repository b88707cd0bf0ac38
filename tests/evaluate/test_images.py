"""Images of any kind become the same pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.images import batches, image_tensor, pil_image


@pytest.fixture
def pixels():
    """(3, 2, 5) in [0, 1], each value a multiple of 1/255."""
    return torch.randint(0, 256, (3, 2, 5)).float() / 255


def test_tensor_pil_and_file_give_the_same_pixels(pixels, tmp_path):
    array = (pixels * 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.save(tmp_path / "x.png")
    for kind in (pixels, pixels.double(), image, tmp_path / "x.png", str(tmp_path / "x.png")):
        assert torch.equal(image_tensor(kind), pixels)
        assert np.array_equal(np.array(pil_image(kind)), array)


def test_pixels_in_memory_are_rounded_to_the_nearest_of_256_levels():
    image = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0]).expand(3, 1, 5)
    assert np.array(pil_image(image))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_modes_of_pil_become_rgb(mode):
    white = Image.new("RGB", (4, 3), "white").convert(mode)
    assert torch.equal(image_tensor(white), torch.ones(3, 3, 4))


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.zeros(1, 3, 4, 4), r"\(3, H, W\), got \(1, 3, 4, 4\)"),
        (torch.zeros(4, 4, 3), r"\(3, H, W\), got \(4, 4, 3\)"),
        (torch.zeros(3, 0, 4), r"\(3, H, W\), got \(3, 0, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"floating point in \[0, 1\], got torch.uint8"),
        (torch.full((3, 4, 4), -1.0), r"got -1 to -1; images in \[-1, 1\] become that by"),
        (torch.full((3, 4, 4), 255.0), "got 255 to 255"),
        (torch.full((3, 4, 4), float("nan")), "got nan to nan"),
        (np.zeros((4, 4, 3)), "a PIL image or a path, got ndarray"),
        ("/nowhere/x.png", "image /nowhere/x.png: no such file"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(PeckerError, match=message):
        image_tensor(image)
    with pytest.raises(PeckerError, match=message):
        pil_image(image)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(path)
    whole = path.read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:40] + b"XXXX" + whole[44:]):
        path.write_bytes(content)
        with pytest.raises(PeckerError, match=r"x.png: cannot be read"):
            pil_image(path)


def test_batches_read_no_further_than_asked():
    read = []
    images = (read.append(i) or torch.zeros(3, 1, 1) for i in range(5))
    parts = batches(images, 2)
    assert len(next(parts)) == 2
    assert read == [0, 1]
    assert [len(part) for part in parts] == [2, 1]
    assert list(batches([], 2)) == []
    with pytest.raises(PeckerError, match="batch size: must be at least 1, got 0"):
        next(batches([], 0))
