"""Captions: true of the image, apart from those of the evaluation, covered by the tokenizer."""

import pytest
from transformers import CLIPTokenizer

from pecker_fast.data import pipeline_folder
from pecker_fast.datasets.fashion_captions import (
    all_training_captions,
    held_back_captions,
    named_captions,
    training_captions,
)
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES

LABELS = range(len(CLASS_NAMES))


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """That of the shipped pipeline."""
    return CLIPTokenizer.from_pretrained(pipeline_folder() / "tokenizer", local_files_only=True)


def test_no_held_back_caption_is_trained_on():
    trained = set(all_training_captions())
    held_back = [caption for label in LABELS for caption in held_back_captions(label)]
    assert trained.isdisjoint(held_back)
    assert len(held_back) == len(set(held_back))
    # Nor does a part of one stand in a sentence of training: "a pair of sneakers" may be known.
    assert not any(caption in known for caption in held_back for known in trained)


def test_every_class_has_enough_of_both():
    for label in LABELS:
        assert len(held_back_captions(label)) >= 10
        assert len(training_captions(label, 0, 1)) >= 40
    assert len(all_training_captions()) == len(set(all_training_captions()))


def test_a_caption_belongs_to_one_class():
    owners: dict[str, set[int]] = {}
    for label in LABELS:
        for caption in named_captions(label) + held_back_captions(label):
            owners.setdefault(caption, set()).add(label)
    assert all(len(labels) == 1 for labels in owners.values())


def test_the_captions_of_the_issue():
    assert "a pair of sneakers" in named_captions(CLASS_NAMES.index("Sneaker"))
    assert "a photo of an ankle boot" in named_captions(CLASS_NAMES.index("Ankle boot"))
    assert "a pair of blue sneakers" in held_back_captions(CLASS_NAMES.index("Sneaker"))


@pytest.mark.parametrize(
    ("tone", "texture", "said", "unsaid"),
    [
        (0, 0, {"dark", "plain"}, {"light", "patterned"}),
        (1, 2, {"patterned"}, {"dark", "light", "plain"}),
        (2, 1, {"light"}, {"dark", "plain", "patterned"}),
    ],
)
def test_captions_say_what_is_true(tone, texture, said, unsaid):
    for label in LABELS:
        words = {word for text in training_captions(label, tone, texture) for word in text.split()}
        assert said <= words and not unsaid & words


def test_words_of_captions_are_single_tokens(tokenizer):
    for caption in all_training_captions():
        words = caption.replace("-", " - ").replace(",", " ,").split()
        assert len(tokenizer(caption).input_ids) == len(words) + 2, caption


def test_held_back_captions_fit_untruncated(tokenizer):
    longest = max(
        len(tokenizer(caption).input_ids)
        for label in LABELS
        for caption in held_back_captions(label)
    )
    assert longest <= tokenizer.model_max_length
