"""What is drawn from the images, and images that do not fit."""

from collections import Counter

import pytest
import torch
from small import NAMES, small_config, small_images, small_model, small_objective

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.errors import PeckerError
from pecker_fast.methods.batches import RealImages
from pecker_fast.runs.randomness import SALIENCY, TRAINING, IterationRandom

CPU = torch.device("cpu")


def real_images(overrides=None, method="random_label", images=None, **model_of):
    config = small_config(overrides, method)
    return RealImages(images or small_images(), small_model(**model_of), config, 1000, CPU)


def originals(batch, images):
    """Which images of the set a batch shows, by their pixels, mirrored or not."""
    pixels = ((batch.images + 1) * 127.5).round().to(torch.uint8)
    found = []
    for one in pixels:
        same = (images.images == one).flatten(1).all(1) | (images.images.flip(-1) == one).flatten(
            1
        ).all(1)
        found.append(int(same.nonzero()))
    return found


def test_an_epoch_shows_every_image_once_under_its_label():
    images = small_images()
    drawn = real_images({"label_dropout": 0.0, "forget": 2})
    for draw, wanted in (
        (drawn.to_forget, list(range(2, 44, 4))),
        (drawn.remain, [i for i in range(44) if i % 4 != 2]),
    ):
        seen = []
        for iteration in range(len(wanted)):  # 5 images each: five epochs
            batch = draw(IterationRandom(0, iteration, CPU, TRAINING))
            found = originals(batch, images)
            assert batch.labels.tolist() == images.labels[found].tolist()
            seen += found
        assert Counter(seen) == dict.fromkeys(wanted, 5)


def test_images_labels_times_and_noise_of_a_batch():
    drawn = real_images({"batch_size": 4000, "label_dropout": 0.25, "forget": 2})
    random = IterationRandom(3, 0, CPU, TRAINING)
    batch = drawn.to_forget(random)
    assert batch.images.shape == batch.noise.shape == (4000, 1, 8, 8)
    assert -1 <= batch.images.min() < -0.9 and 0.9 < batch.images.max() <= 1
    # Half of the times are drawn, the others are their mirror images.
    assert torch.equal(batch.t[2001:], 999 - batch.t[:1999])
    assert 0 <= batch.t.min() < 5 and 995 < batch.t.max() <= 999
    assert abs(float(batch.noise.mean())) < 0.01 and abs(float(batch.noise.std()) - 1) < 0.01
    # A quarter is told "no class", the told and the imitated label independently of each other.
    assert set(batch.labels.tolist()) == {2, 4} and set(batch.imitated.tolist()) == {3, 4}
    told, imitated = batch.labels == 4, batch.imitated == 4
    for share, expected in ((told, 0.25), (imitated, 0.25), (told & imitated, 0.0625)):
        assert abs(float(share.float().mean()) - expected) < 0.03


def test_half_of_the_images_are_mirrored_and_none_without_flip():
    images = small_images()
    for flip, expected in ((True, 0.5), (False, 0.0)):
        drawn = real_images({"batch_size": 400, "flip": flip})
        batch = drawn.to_forget(IterationRandom(0, 0, CPU, TRAINING))
        pixels = ((batch.images + 1) * 127.5).round().to(torch.uint8)
        same = (pixels == images.images[originals(batch, images)]).flatten(1).all(1)
        assert abs(1 - float(same.float().mean()) - expected) < 0.1


def test_the_saliency_sees_every_image_of_the_class_once():
    drawn = real_images({"forget": 1})
    random = IterationRandom(0, 0, CPU, SALIENCY)
    batches = [drawn.to_score(part, random) for part in drawn.saliency_parts()]
    assert [len(batch) for batch in batches] == [4, 4, 3]
    seen = [index for batch in batches for index in originals(batch, small_images())]
    assert seen == list(range(1, 44, 4))
    assert all(set(batch.labels.tolist()) == {1} for batch in batches)


@pytest.mark.parametrize(
    ("forget", "override", "expected"), [(0, None, 1), (3, None, 0), ("star", "circle", 0)]
)
def test_the_class_that_is_imitated(forget, override, expected):
    changes = {"forget": forget, "label_dropout": 0.0}
    drawn = real_images(changes if override is None else {**changes, "override": override})
    assert drawn.override == expected
    batch = drawn.to_forget(IterationRandom(0, 0, CPU, TRAINING))
    assert set(batch.imitated.tolist()) == {expected}


def test_other_methods_imitate_none():
    assert real_images(method="fine_tune").override is None


@pytest.mark.parametrize(
    ("overrides", "method", "message"),
    [
        ({}, "random_label", "label_dropout needs a model that was trained with a label for no"),
        ({"label_dropout": 0}, "random_label", "saliency.guidance needs .*: set saliency.guidance"),
        ({"label_dropout": 0}, "esd", "method esd needs .*: choose another method"),
    ],
)
def test_a_model_without_a_null_label(overrides, method, message):
    with pytest.raises(PeckerError, match=message):
        real_images(overrides, method, null_label=None)


def test_a_model_without_a_null_label_can_be_trained_without_it():
    drawn = real_images({"label_dropout": 0, "saliency.guidance": 0}, null_label=None)
    assert drawn.no_class is None and drawn.no_class_like(torch.zeros(3)) is None
    real_images({"label_dropout": 0, "mask.kind": "random"}, null_label=None)


def test_images_that_do_not_fit():
    images = small_images()
    larger = ImageSet(images.images.repeat(1, 3, 1, 1), images.labels, NAMES, "colour")
    with pytest.raises(PeckerError, match=r"\(colour\) are \(3, 8, 8\), the model was made for"):
        real_images(images=larger)
    other = ImageSet(images.images, images.labels, ("a", "b", "c", "d"), "letters")
    with pytest.raises(PeckerError, match=r"letters.* classes a, b, c, d, the model has circle"):
        real_images(images=other)
    more = ImageSet(images.images, images.labels, (*NAMES, "e"), "five")
    with pytest.raises(PeckerError, match="the model has circle"):
        real_images(images=more)


def test_a_class_that_is_unknown_or_the_same():
    with pytest.raises(PeckerError, match="unknown class 'moon'"):
        real_images({"forget": "moon"})
    with pytest.raises(PeckerError, match="'star' is the class to forget; choose another"):
        real_images({"forget": 2, "override": "star"})


def test_batches_are_in_the_networks_precision():
    objective = small_objective(dtype=torch.float64)
    batch = objective.draw("remain", IterationRandom(0, 0, CPU, TRAINING))
    assert batch.images.dtype == batch.noise.dtype == torch.float64
