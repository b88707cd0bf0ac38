"""Figures of a concept: counted by hand with a classifier that reads the answer off the image."""

from dataclasses import replace

import pytest
import torch

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.concept import ConceptCaptions, ConceptFigures, Recognition
from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images, neighbours_of
from pecker_fast.evaluate.forgetting import Hits

CAPTIONS = ConceptCaptions(
    class_names=("ball", "cat", "lynx", "tree"),
    forget=1,
    override=0,
    groups={
        "forget_trained": [("a cat", 1), ("a photo of a cat", 1)],
        "forget_held_back": [("my cat", 1), ("two cats", 1), ("blue cat", 1)],
        "neighbours": [("a lynx", 2), ("big lynx", 2)],
        "others": [("a tree", 3), ("a ball", 0), ("red ball", 0)],
    },
)


class ReadsTheAnswer:
    """The first pixel of an image is the class that is seen in it."""

    def logits_and_features(self, images):
        logits = torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 4).float()
        return logits, logits


def measured(*classes, captions=CAPTIONS):
    """One image per caption in which the classifier sees these classes."""
    images = torch.tensor(classes).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return Recognition.measure(images, captions, ReadsTheAnswer())


BEFORE = measured(1, 1, 1, 1, 2, 2, 2, 3, 0, 0)
AFTER = measured(0, 1, 0, 0, 3, 2, 1, 3, 0, 3)


def test_counts_by_kind_of_caption_and_by_class():
    assert AFTER == Recognition(
        {
            "forget_trained": Hits(1, 2),
            "forget_held_back": Hits(0, 3),
            "override": Hits(3, 5),
            "neighbours": Hits(1, 2),
            "others": Hits(2, 3),
        },
        {"ball": Hits(1, 2), "lynx": Hits(1, 2), "tree": Hits(1, 1)},
    )
    assert (AFTER["forget"], AFTER["keep"]) == (Hits(1, 5), Hits(3, 5))
    figures = ConceptFigures(CAPTIONS, BEFORE, AFTER).to_dict()
    assert figures["forget_trained_before"] == 1.0 and figures["forget_trained_after"] == 0.5
    assert figures["forget_held_back_difference"] == pytest.approx(-2 / 3)
    assert figures["keep_difference"] == pytest.approx(-0.4)
    assert figures["override_after"] == 0.6
    assert figures["after"]["classes"]["ball"] == {"hits": 1, "count": 2}
    assert figures["after"]["sampler"] == "given images" and figures["class"] == "cat"


def test_without_an_override():
    captions = replace(CAPTIONS, override=None)
    before = measured(1, 1, 1, 1, 2, 2, 2, 3, 0, 0, captions=captions)
    figures = ConceptFigures(captions, before, before)
    assert before.parts["override"] is None and len(figures.rows()) == 5
    assert figures.to_dict()["override_after"] is None


@pytest.mark.parametrize(
    ("trained", "held_back", "kept_after", "gone", "kept"),
    [
        ((5, 100), (5, 100), 90, True, True),
        ((6, 100), (0, 100), 86, False, False),
        # .90 - .87 is .030000000000000027 in float64, and must still count as .03.
        ((0, 100), (6, 100), 87, False, True),
        ((0, 0), (0, 100), 100, True, True),
    ],
)
def test_gone_and_kept(trained, held_back, kept_after, gone, kept):
    rest = {"neighbours": Hits(90, 100), "others": Hits(0, 0)}
    before = Recognition({**BEFORE.parts, **rest})
    after = Recognition(
        {"forget_trained": Hits(*trained), "forget_held_back": Hits(*held_back), **rest,
         "neighbours": Hits(kept_after, 100)}
    )  # fmt: skip
    figures = ConceptFigures(CAPTIONS, before, after)
    assert (figures.gone, figures.kept) == (gone, kept)


def test_captions_of_the_shipped_pipeline():
    captions = fashion_concept(forget=7, override=8, per_class=20, seed=3)
    told, untold, near, far = (
        [caption for caption, _ in group] for group in captions.groups.values()
    )
    assert set(told) <= set(named_captions(7)) and len(told) == 20
    assert set(untold) <= set(held_back_captions(7)) and len(untold) == 20
    classes = {kind: {label for _, label in group} for kind, group in captions.groups.items()}
    assert classes["neighbours"] == {5, 9} and classes["others"] == {0, 1, 2, 3, 4, 6, 8}
    kept = [*captions.groups["neighbours"], *captions.groups["others"]]
    assert all(c in {*named_captions(k), *held_back_captions(k)} for c, k in kept)
    assert sum(caption in held_back_captions(label) for caption, label in kept) == 9 * 10
    assert (len(near), len(far)) == (2 * 20, 7 * 20)
    assert captions.labels.bincount().tolist() == [20, 20, 20, 20, 20, 20, 20, 40, 20, 20]
    assert captions == fashion_concept(7, 8, 20, seed=3) != fashion_concept(7, 8, 20, seed=4)
    asked = fashion_concept(7, 8, 4, told=["a sneaker"]).groups["forget_trained"]
    assert asked == [("a sneaker", 7)] * 4
    assert neighbours_of(3) == () and neighbours_of(0) == (2, 4, 6)


@pytest.mark.parametrize(("forget", "per_class"), [(10, 5), (-1, 5), (7, 1)])
def test_captions_of_the_shipped_pipeline_with_bad_input(forget, per_class):
    with pytest.raises(PeckerError, match="concept"):
        fashion_concept(forget, None, per_class)


def test_images_of_the_shipped_pipeline_lose_their_border():
    images = torch.full((2, 3, 32, 32), 0.25)
    images[:, :, 2:-2, 2:-2] = 1
    images[:, :, 2, 2] = 0
    found = fashion_images(images)
    assert found.shape == (2, 1, 28, 28)
    assert (found[:, :, 0, 0] == -1).all() and found.sum() == 2 * (28 * 28 - 2)
    with pytest.raises(PeckerError, match="32, 32"):
        fashion_images(torch.zeros(1, 3, 64, 64))
