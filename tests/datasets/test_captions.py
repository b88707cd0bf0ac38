"""Captions: true of the image, apart from those of the evaluation, covered by the tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from pecker_fast.datasets.fashion_captions import (
    Traits,
    all_training_captions,
    held_back_captions,
    measure_traits,
    named_captions,
    training_captions,
)
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES
from pecker_fast.models.pipeline_networks import DenoiserRecipe, build_tokenizer
from pecker_fast.models.pipeline_tokenizer import learn_bpe
from pecker_fast.models.train_pipeline import Captioner

LABELS = range(len(CLASS_NAMES))
LENGTH = DenoiserRecipe().text_length


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return build_tokenizer(all_training_captions(), LENGTH, folder)


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


def test_traits_are_those_of_the_piece():
    images = torch.full((4, 1, 28, 28), -1.0)
    piece = images[:, :, 8:20, 8:20]
    piece[0] = -0.5  # brightness .25
    piece[1] = 0.9  # .95
    piece[2] = 0.28  # .64, and stripes:
    piece[2, :, :, ::2] -= 0.5
    assert measure_traits(images).tone.tolist()[:3] == [0, 2, 0]
    assert measure_traits(images).texture.tolist()[:3] == [0, 0, 2]
    assert measure_traits(images[3:]).tone.tolist() == [0]  # nothing there: no division by 0


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


def test_captioner_draws_for_the_image_it_is_asked_about():
    labels = torch.tensor([7, 1])
    traits = Traits(np.array([0, 2]), np.array([1, 1]))
    recipe = DenoiserRecipe(empty_prompts=0.25, unknown_words=0.25)
    captioner = Captioner(labels, traits, recipe)
    drawn = captioner.draw(np.array([1, 0] * 400), np.random.default_rng(0))
    trousers, sneakers = drawn[::2], drawn[1::2]
    known = set(training_captions(1, 2, 1)), set(training_captions(7, 0, 1))
    for captions, allowed in zip((trousers, sneakers), known, strict=True):
        empty = sum(caption == "" for caption in captions)
        plain = sum(caption in allowed for caption in captions)
        # 400 draws at .25 have a standard deviation of 8.7; this is five of them.
        assert abs(empty - 100) < 44 and abs(len(captions) - empty - plain - 100) < 44
    assert drawn == captioner.draw(np.array([1, 0] * 400), np.random.default_rng(0))


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
    assert longest <= LENGTH


@pytest.mark.parametrize(
    "text", ["", "qwzx", "BLUE Sneakers!", "héllo 42", "日本 🙂", "\n\t", "a " * 99]
)
def test_any_text_can_be_encoded(tokenizer, text):
    ids = tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    assert len(ids) == LENGTH
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert all(0 <= number < len(tokenizer) for number in ids)
    # What is unknown is spelt, it does not end the text.
    spelt = ids[1 : ids.index(tokenizer.eos_token_id)]
    assert bool(spelt) == bool(text.strip())


def test_case_does_not_matter(tokenizer):
    assert (
        tokenizer("A Photo of a SNEAKER").input_ids == tokenizer("a photo of a sneaker").input_ids
    )


def test_merges_are_made_in_order_of_frequency():
    vocabulary, merges = learn_bpe(["ab ab ab abc", "bc"])
    # Pairs: (a, b</w>) 3 times, (b, c</w>) twice; then (a, bc</w>) is all that is left.
    assert merges == [("a", "b</w>"), ("b", "c</w>"), ("a", "bc</w>")]
    assert list(vocabulary)[512:] == [
        "ab</w>",
        "bc</w>",
        "abc</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    assert list(vocabulary.values()) == list(range(517))


def test_the_tokenizer_folder_is_the_same_each_time(tmp_path: Path):
    for name in ("a", "b"):
        build_tokenizer(all_training_captions(), LENGTH, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
