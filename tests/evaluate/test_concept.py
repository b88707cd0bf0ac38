"""Figures of a concept: counted by hand with a classifier that reads the answer off the image."""

from dataclasses import replace

import pytest
import torch

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.concept import ConceptCaptions, ConceptFigures, Recognition, Share
from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images, neighbours_of

CAPTIONS = ConceptCaptions(
    class_names=("ball", "cat", "lynx", "tree"),
    forget=1,
    override=0,
    trained=("a cat", "a photo of a cat"),
    held_back=("my cat", "two cats", "blue cat"),
    neighbours=(("a lynx", 2), ("big lynx", 2)),
    others=(("a tree", 3), ("a ball", 0), ("red ball", 0)),
)


class ReadsTheAnswer:
    """The first pixel of an image is the class that is seen in it."""

    def logits_and_features(self, images):
        logits = torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 4).float()
        return logits, logits


def seen(*classes):
    """One image per caption in which the classifier sees these classes."""
    return torch.tensor(classes).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def measured(*classes, captions=CAPTIONS):
    return Recognition.measure(seen(*classes), captions, ReadsTheAnswer())


BEFORE = measured(1, 1, 1, 1, 2, 2, 2, 3, 0, 0)
AFTER = measured(0, 1, 0, 0, 3, 2, 1, 3, 0, 3)


def test_counts_by_kind_of_caption_and_by_class():
    assert AFTER == Recognition(
        forget_trained=Share(1, 2),
        forget_held_back=Share(0, 3),
        override=Share(3, 5),
        neighbours=Share(1, 2),
        others=Share(2, 3),
        classes={"ball": Share(1, 2), "lynx": Share(1, 2), "tree": Share(1, 1)},
    )
    assert (AFTER.forget, AFTER.keep) == (Share(1, 5), Share(3, 5))
    assert BEFORE.forget == Share(4, 5) and BEFORE.keep == Share(5, 5)


def test_without_an_override():
    captions = replace(CAPTIONS, override=None)
    figures = ConceptFigures(
        captions,
        measured(1, 1, 1, 1, 2, 2, 2, 3, 0, 0, captions=captions),
        measured(0, 0, 0, 0, 0, 2, 2, 3, 0, 0, captions=captions),
    )
    assert figures.before.override is None
    assert not any("instead" in name for name, _, _ in figures.rows())
    assert figures.to_dict()["override_after"] is None


def test_differences_before_and_after():
    figures = ConceptFigures(CAPTIONS, BEFORE, AFTER).to_dict()
    assert figures["forget_trained_before"] == 1.0 and figures["forget_trained_after"] == 0.5
    assert figures["forget_held_back_difference"] == pytest.approx(-2 / 3)
    assert figures["keep_difference"] == pytest.approx(-0.4)
    assert figures["override_after"] == 0.6
    assert figures["after"]["classes"]["ball"] == {"hits": 1, "count": 2}
    assert str(ConceptFigures(CAPTIONS, BEFORE, AFTER)) == (
        "cat: 100.0 % -> 50.0 % of told captions, 66.7 % -> 0.0 % of captions held back; "
        "others 100.0 % -> 60.0 %"
    )


def with_shares(trained, held_back, keep_before, keep_after):
    before = replace(BEFORE, neighbours=keep_before, others=Share(0, 0))
    after = replace(AFTER, forget_trained=trained, forget_held_back=held_back)
    return ConceptFigures(
        CAPTIONS, before, replace(after, neighbours=keep_after, others=Share(0, 0))
    )


@pytest.mark.parametrize(
    ("trained", "held_back", "gone"),
    [
        (Share(5, 100), Share(5, 100), True),
        (Share(6, 100), Share(0, 100), False),
        (Share(0, 100), Share(6, 100), False),
        (Share(0, 0), Share(0, 100), True),
    ],
)
def test_gone_needs_both_kinds_of_captions(trained, held_back, gone):
    assert with_shares(trained, held_back, Share(9, 10), Share(9, 10)).gone is gone


@pytest.mark.parametrize(("after", "kept"), [(87, True), (86, False), (100, True)])
def test_kept_within_three_hundredths(after, kept):
    # .90 - .87 is .030000000000000027 in float64, and must still count as .03.
    figures = with_shares(Share(0, 1), Share(0, 1), Share(90, 100), Share(after, 100))
    assert figures.kept is kept


def test_figures_survive_json():
    assert Recognition.from_dict(AFTER.to_dict()) == AFTER
    without = replace(AFTER, override=None, seed=3)
    assert Recognition.from_dict(without.to_dict()) == without
    for damage in ({"more": 1}, {"forget_trained": {"hits": 1}}, {"classes": None}):
        with pytest.raises(PeckerError, match="cannot be read"):
            Recognition.from_dict({**AFTER.to_dict(), **damage})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained": (), "held_back": ()}, "both needed"),
        ({"neighbours": (), "others": ()}, "both needed"),
        ({"others": (("a dog", 4),)}, r"class 4 is not in 0 \.\. 3"),
        ({"override": 7}, r"class 7 is not in 0 \.\. 3"),
        ({"override": 1}, "the override is the class to forget"),
        ({"neighbours": (("kitten", 1),)}, "'kitten' names the class to forget, cat"),
    ],
)
def test_captions_that_make_no_sense(change, message):
    with pytest.raises(PeckerError, match=message):
        replace(CAPTIONS, **change)


def test_images_and_classes_must_fit():
    with pytest.raises(PeckerError, match="9 images for 10 captions"):
        measured(*[0] * 9)
    five = replace(CAPTIONS, class_names=(*CAPTIONS.class_names, "stone"))
    with pytest.raises(PeckerError, match="knows 4 classes, the captions are of 5"):
        measured(*[0] * 10, captions=five)


def test_captions_of_the_shipped_pipeline():
    captions = fashion_concept(forget=7, override=8, per_class=20, seed=3)
    assert set(captions.trained) <= set(named_captions(7)) and len(captions.trained) == 20
    assert set(captions.held_back) <= set(held_back_captions(7)) and len(captions.held_back) == 20
    assert {label for _, label in captions.neighbours} == {5, 9}
    assert {label for _, label in captions.others} == {0, 1, 2, 3, 4, 6, 8}
    for caption, label in captions.neighbours + captions.others:
        assert caption in {*named_captions(label), *held_back_captions(label)}
    held_back = [c for c, label in captions.others if c in held_back_captions(label)]
    assert len(held_back) == 7 * 10 and len(captions.others) == 7 * 20
    assert captions.labels.bincount().tolist() == [20, 20, 20, 20, 20, 20, 20, 40, 20, 20]
    assert captions == fashion_concept(7, 8, 20, seed=3) != fashion_concept(7, 8, 20, seed=4)
    assert fashion_concept(7, 8, 4, told=["a sneaker"]).trained == ("a sneaker",) * 4
    assert neighbours_of(3) == () and neighbours_of(0) == (2, 4, 6)


@pytest.mark.parametrize(("forget", "per_class"), [(10, 5), (-1, 5), (7, 1)])
def test_captions_of_the_shipped_pipeline_with_bad_input(forget, per_class):
    with pytest.raises(PeckerError, match="concept: "):
        fashion_concept(forget, None, per_class)


def test_images_of_the_shipped_pipeline_lose_their_border():
    images = torch.full((2, 3, 32, 32), 0.25)
    images[:, :, 2:-2, 2:-2] = 1
    images[:, :, 2, 2] = 0
    found = fashion_images(images)
    assert found.shape == (2, 1, 28, 28)
    assert (found[:, :, 0, 0] == -1).all() and found.sum() == 2 * (28 * 28 - 2)
    with pytest.raises(PeckerError, match=r"\(N, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        fashion_images(torch.zeros(1, 3, 64, 64))
