"""CLIP score of a tiny CLIP model, against its formula written out."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.clip_score import ClipScorer

LENGTH = 8
PROMPTS = ["abc", "a b", "cab", "b c a b c a b c a"]  # the last one is 11 tokens, ends included


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abc":
        vocabulary[letter] = len(vocabulary)
        vocabulary[letter + "</w>"] = len(vocabulary)
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n")
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    side |= {"num_attention_heads": 2, "projection_dim": 8}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": 8}
    config = CLIPConfig(
        text_config={**side, **tokens, "max_position_embeddings": LENGTH},
        vision_config={**side, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    tokenizer = CLIPTokenizer.from_pretrained(path, model_max_length=LENGTH)
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScorer(folder)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "clip")


@pytest.fixture
def pixels():
    """(4, 3, 16, 16) in [0, 1], each value a multiple of 1/255."""
    return torch.randint(0, 256, (4, 3, 16, 16)).float() / 255


def expected_cosines(folder, pixels):
    """The formula in float64 on both towers' outputs, one pair at a time without padding.

    The images have CLIP's size, so that they need no resizing. (transformers 4.41 cannot run the
    towers themselves in float64.)
    """
    model = CLIPModel.from_pretrained(folder).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    ids = [[0, 2, 4, 7, 1], [0, 3, 5, 1], [0, 6, 2, 5, 1], [0, 5, 7, 3, 5, 7, 3, 1]]
    cosines = []
    for image, tokens in zip(pixels, ids, strict=True):
        with torch.no_grad():
            seen = model.vision_model(((image - mean) / std)[None]).pooler_output.double()
            read = model.text_model(torch.tensor([tokens])).last_hidden_state[:, -1].double()
            a = (seen @ model.visual_projection.weight.double().T)[0].numpy()
            b = (read @ model.text_projection.weight.double().T)[0].numpy()
        cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    return cosines


def test_score_is_the_mean_cosine_times_100(folder, scorer, pixels):
    expected = expected_cosines(folder, pixels)
    # float32 towers and projections of a layer each, with and without padding.
    assert scorer.cosines(pixels, PROMPTS).tolist() == pytest.approx(expected, abs=2e-6)
    figures = scorer.measure(pixels, PROMPTS)
    assert figures.image_count == 4
    assert figures.score == pytest.approx(100 * np.mean(expected), abs=2e-4)
    assert figures.standard_error == pytest.approx(
        100 * np.std(expected, ddof=1) / np.sqrt(4), abs=2e-4
    )
    assert len(set(np.round(expected, 4))) == 4
    assert figures.truncated_prompts == 1


def test_negative_cosines_are_not_cut_off(scorer, copied, pixels):
    model = CLIPModel.from_pretrained(copied)
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    model.save_pretrained(copied)
    figures = ClipScorer(copied).measure(pixels, PROMPTS)
    assert figures.score == -scorer.measure(pixels, PROMPTS).score != 0


def test_every_image_with_every_text(scorer, pixels):
    texts = ["a cat", "a dog", "nothing"]
    found = scorer.similarities(pixels, texts)
    for row, image in zip(found, pixels, strict=True):
        alone = scorer.cosines(image.expand(3, -1, -1, -1), texts)
        torch.testing.assert_close(row, alone, atol=1e-6, rtol=0)


def test_batches_do_not_matter(scorer, pixels):
    whole = scorer.measure(pixels, PROMPTS)
    many = scorer.measure(pixels.repeat(5, 1, 1, 1), PROMPTS * 5)
    # Padding to the longest prompt of the batch is masked; sums are in another order.
    assert many.score == pytest.approx(whole.score, abs=1e-4)
    assert scorer.measure(pixels[:1], ["abc"]).standard_error is None


def test_provenance_tells_one_model_from_another(scorer, folder, copied):
    plain = json.loads(json.dumps(scorer.measure(torch.ones(1, 3, 30, 20), ["a"]).to_dict()))[
        "provenance"
    ]
    assert plain["file"] == str(folder)
    assert plain["settings"]["max_length"] == LENGTH
    assert plain["settings"]["image_processor"].startswith("CLIPImageProcessor")
    assert plain["versions"]["transformers"] == transformers.__version__
    assert len(plain["digest"]) == 64
    assert ClipScorer(copied).provenance().digest == plain["digest"]
    model = CLIPModel.from_pretrained(copied)
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-3
    model.save_pretrained(copied)
    assert ClipScorer(copied).provenance().digest != plain["digest"]


def test_a_part_of_a_clip_model_is_refused(folder, tmp_path):
    """transformers would draw the missing weights at random."""
    model = CLIPModel.from_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("visual_projection")}
    part = shutil.copytree(folder, tmp_path / "clip")
    model.save_pretrained(part, state_dict=state)
    with pytest.raises(PeckerError, match=r"1 of its weights are missing .*visual_projection"):
        ClipScorer(part)


def test_weights_with_nan_are_no_score(copied):
    model = CLIPModel.from_pretrained(copied)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    model.save_pretrained(copied)
    with pytest.raises(PeckerError, match="clip"):
        ClipScorer(copied).cosines(torch.rand(1, 3, 16, 16), ["a"])
