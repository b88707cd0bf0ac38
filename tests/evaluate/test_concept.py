"""Figures of a concept: counted by hand with a classifier that reads the answer off the image."""

from dataclasses import replace

import pytest
import torch

from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.recognition import Outcome, Recognition

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


def reads_the_answer(images):
    """The first pixel of an image is the class that is seen in it."""
    return images[:, 0, 0, 0].long()


def measured(*classes, captions=CAPTIONS):
    """One image per caption in which the classifier sees these classes."""
    images = torch.tensor(classes).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return captions.recognition(images, reads_the_answer)


BEFORE = measured(1, 1, 1, 1, 2, 2, 2, 3, 0, 0)
AFTER = measured(0, 1, 0, 0, 3, 2, 1, 3, 0, 3)


def test_counts_by_kind_of_caption_and_by_class():
    assert AFTER == Recognition(
        {
            "forget_trained": Share(1, 2),
            "forget_held_back": Share(0, 3),
            "neighbours": Share(1, 2),
            "others": Share(2, 3),
        },
        {"ball": Share(1, 2), "lynx": Share(1, 2), "tree": Share(1, 1)},
        {"ball": 3, "cat": 1, "lynx": 0, "tree": 1},
    )
    assert (AFTER["forget"], AFTER["keep"]) == (Share(1, 5), Share(3, 5))
    assert AFTER.taken_for("ball") == Share(3, 5)
    outcome = Outcome("concept", CAPTIONS.name, CAPTIONS.override_name, BEFORE, AFTER)
    figures = outcome.to_dict()
    assert figures["forget_trained_before"] == 1.0 and figures["forget_trained_after"] == 0.5
    assert figures["forget_held_back_difference"] == pytest.approx(-2 / 3)
    assert figures["keep_difference"] == pytest.approx(-0.4)
    assert figures["override_after"] == 0.6
    ball = figures["after"]["classes"]["ball"]
    assert (ball["hits"], ball["count"], len(ball["interval"])) == (1, 2, 2)
    assert figures["after"]["sampler"] == "given images" and figures["class"] == "cat"
    assert [row[0] for row in outcome.seen_as_rows()] == ["ball", "cat", "tree", "lynx"]


def test_without_an_override():
    captions = replace(CAPTIONS, override=None)
    before = measured(1, 1, 1, 1, 2, 2, 2, 3, 0, 0, captions=captions)
    outcome = Outcome("concept", captions.name, captions.override_name, before, before)
    assert len(outcome.rows()) == 5 and outcome.to_dict()["override_after"] is None


@pytest.mark.parametrize(
    ("trained", "held_back", "kept_after", "gone", "kept"),
    [
        ((0, 200), (3, 200), 9_000, True, True),
        ((0, 200), (5, 200), 8_770, None, None),  # 2.5 %, but up to 5.7; -2.3 points, up to -3.2
        ((11, 200), (0, 200), 8_690, False, False),
        ((0, 20), (0, 20), 9_000, None, True),  # up to 16 %
        ((0, 0), (0, 200), 9_000, True, True),
    ],
)
def test_verdicts_rest_on_the_bounds(trained, held_back, kept_after, gone, kept):
    told, untold = (Share(*counts) for counts in (trained, held_back))
    forgotten = {"forget_trained": told, "forget_held_back": untold}
    after = {
        **{kind: s for kind, s in forgotten.items() if s.total},
        "others": Share(kept_after, 10_000),
    }
    before = Recognition({"others": Share(9_000, 10_000)})
    outcome = Outcome("concept", "cat", None, before, Recognition(after))
    assert (outcome.gone, outcome.kept) == (gone, kept)
    assert ("at this share takes" in outcome.headline("a cat")) == (gone is None)
    assert ("95 % bound of the loss" in outcome.kept_sentence()) == (kept is None)
