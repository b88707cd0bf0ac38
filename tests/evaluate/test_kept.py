"""Which images count as kept, and when two sets cannot be compared."""

import pytest
import torch

from pecker_fast.datasets.image_files import ImageFiles
from pecker_fast.datasets.loading import ImageSet, with_classes
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.kept import check_comparable, kept_images

NAMES = ("cat", "dog", "ship")


def image_set(labels, names=NAMES, source="generated"):
    """One image per label, filled with its position."""
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return ImageSet(pixels, torch.tensor(labels), names, source)


def positions(images):
    return images[:, 0, 0, 0].tolist()


def test_the_forgotten_class_is_left_out_by_name():
    # Class 0 here is class 2 there.
    assert positions(kept_images(image_set([0, 1, 2, 0, 1]), "Cat")) == [1, 2, 4]
    real = image_set([0, 1, 2, 2], ("dog", "ship", "cat"))
    assert positions(kept_images(real, "cat")) == [0, 1]
    assert positions(kept_images(real, None)) == [0, 1, 2, 3]
    with pytest.raises(PeckerError, match="no image of a class other than 'cat'"):
        kept_images(image_set([0, 0]), "cat")


def compared(generated, real, forget):
    names, labels = generated.class_names, generated.labels
    check_comparable((1, 2, 2), names, labels, "generated", real, forget)


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2], [2, 1, 1]])
def test_the_forgotten_class_may_be_missing_on_either_side(labels):
    real = image_set([0, 1, 2], ("Dog", "Ship", "Cat"))
    for other in (real, real.without(2)):
        compared(image_set(labels), other, "cat")


@pytest.mark.parametrize(
    ("real", "forget", "named"),
    [
        (image_set([0, 1, 2], ("cat", "dog", "truck"), "real"), "cat", "'ship'.*real has 'truck'"),
        (image_set([1, 1], NAMES, "real"), "cat", "only generated has 'ship'"),
        (image_set([1, 1], NAMES, "real"), None, "only generated has 'cat', 'ship'"),
    ],
)
def test_other_classes_are_refused_by_name(real, forget, named):
    with pytest.raises(PeckerError, match=named):
        compared(image_set([0, 1, 2]), real, forget)


def test_images_on_disk():
    pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    named = ImageFiles(pixels, torch.tensor([0, 1, 1]), ("a", "b"), "folder")
    assert with_classes(named).class_names == ("a", "b")
    numbered = ImageFiles(pixels, torch.tensor([0, 2, 2]), None, "file.npz")
    assert with_classes(numbered).class_names == ("class 0", "class 1", "class 2")
    with pytest.raises(PeckerError, match="flat: the images have no classes"):
        with_classes(ImageFiles(pixels, None, None, "flat"))
