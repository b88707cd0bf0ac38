"""A short training of the text-to-image pipeline ends in a folder that diffusers loads."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch.nn import functional as F

from pecker_fast.cli import group
from pecker_fast.datasets import fashion_mnist
from pecker_fast.datasets.fashion_captions import all_training_captions, measure_traits
from pecker_fast.errors import PeckerError
from pecker_fast.models.pipeline_figures import draw_images
from pecker_fast.models.pipeline_networks import (
    AutoencoderRecipe,
    DenoiserRecipe,
    build_autoencoder,
    build_scheduler,
    build_tokenizer,
    with_border,
    without_border,
)
from pecker_fast.models.train_pipeline import Captioner, encode, train_autoencoder, train_denoiser

CPU = torch.device("cpu")
SMALL_PIXELS = AutoencoderRecipe(channels=(4, 4, 8), steps=3, batch_size=2)
SMALL_TEXT = DenoiserRecipe(channels=(8, 8), text_width=16, text_layers=1, steps=4, batch_size=3)


@pytest.fixture(scope="module")
def toys() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of two classes that a glance tells apart: a high bar, a wide bar."""
    images = torch.full((40, 1, 28, 28), -1.0)
    labels = torch.arange(40) % 2
    images[labels == 0, :, 2:26, 10:18] = 0.5
    images[labels == 1, :, 10:18, 2:26] = 0.5
    return images, labels


def load(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def small_denoiser(toys, tmp_path, recipe=SMALL_TEXT, checkpoint=None):
    images, labels = toys
    tokenizer = build_tokenizer(all_training_captions()[:50], recipe.text_length, tmp_path / "tok")
    captioner = Captioner(labels, measure_traits(images), recipe)
    latents = torch.zeros(40, 4, 8, 8), torch.ones(40, 4, 8, 8)
    latents[0][labels == 1] = 2.0
    return train_denoiser(latents, captioner, tokenizer, recipe, CPU, checkpoint)


def test_border_makes_sides_that_the_pipeline_accepts(toys):
    framed = with_border(toys[0])
    assert framed.shape[2:] == (32, 32)
    assert torch.equal(without_border(framed), toys[0])
    assert float(framed[:, :, :2].max()) == -1.0


def test_the_schedule_is_that_of_stable_diffusion():
    alphas = build_scheduler().alphas_cumprod.double()
    sigma = ((1 - alphas[625]) / alphas[625]).sqrt()
    assert abs(float(sigma) - 2.502) < 5e-4  # the published one-step start, to the digits printed


def test_autoencoder_learns_and_its_latents_have_unit_variance(toys):
    images, _ = toys
    recipe = AutoencoderRecipe(channels=(4, 8, 8), steps=60, batch_size=8, learning_rate=5e-3)
    torch.manual_seed(recipe.seed)
    before = build_autoencoder(recipe)
    vae = train_autoencoder(images, recipe, CPU)
    framed = with_border(images)
    with torch.no_grad():
        errors = [float(F.l1_loss(model(framed).sample, framed)) for model in (before, vae)]
    assert errors[1] < 0.5 * errors[0]
    mean, std = encode(vae, images, CPU)
    drawn = mean + std * torch.randn_like(mean)
    # 10,240 numbers, not independent: the sample's own variance wavers by a few per cent.
    assert abs(float(drawn.var()) - 1) < 0.1
    assert not vae.training


def test_denoiser_learns_to_denoise(toys, tmp_path):
    recipe = DenoiserRecipe(
        channels=(8, 8), text_width=16, text_layers=1, steps=60, batch_size=16, learning_rate=1e-2
    )
    unet, text_encoder = small_denoiser(toys, tmp_path, recipe)
    untrained, _ = small_denoiser(toys, tmp_path, DenoiserRecipe(**{**vars(recipe), "steps": 0}))
    assert not unet.training and not text_encoder.training
    noise, t = torch.randn(64, 4, 8, 8), torch.full((64,), 900)
    alpha = build_scheduler().alphas_cumprod[900]
    words = torch.randn(64, 24, 16)
    with torch.no_grad():
        losses = [
            float(F.mse_loss(network((1 - alpha).sqrt() * noise, t, words).sample, noise))
            for network in (untrained, unet)
        ]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    toys, tmp_path, monkeypatch, stage
):
    monkeypatch.setattr("pecker_fast.models.train_pipeline._CHECKPOINT_EVERY", 2)

    def train(checkpoint):
        if stage == "autoencoder":
            return train_autoencoder(toys[0], SMALL_PIXELS, CPU, checkpoint)
        return torch.nn.ModuleList(small_denoiser(toys, tmp_path, checkpoint=checkpoint))

    whole = train(tmp_path / "whole.pt")
    checkpoint = tmp_path / "killed.pt"
    step = torch.optim.Adam.step
    calls = []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint)
    assert torch.load(checkpoint, weights_only=True)["done"] == 2
    assert same(train(checkpoint), whole)


def test_a_checkpoint_of_another_recipe_is_refused(toys, tmp_path, monkeypatch):
    monkeypatch.setattr("pecker_fast.models.train_pipeline._CHECKPOINT_EVERY", 1)
    train_autoencoder(toys[0], SMALL_PIXELS, CPU, tmp_path / "a.pt")
    other = AutoencoderRecipe(**{**vars(SMALL_PIXELS), "seed": 1})
    with pytest.raises(PeckerError, match=r"a\.pt: belongs to a run with another recipe"):
        train_autoencoder(toys[0], other, CPU, tmp_path / "a.pt")


@pytest.fixture(scope="module")
def trained(toys, tmp_path_factory) -> Path:
    """What the command writes after two steps of each stage."""
    out = tmp_path_factory.mktemp("command") / "pipeline"
    arguments = ["train-pipeline", "--out", str(out), "--steps", "2", "--batch-size", "2"]
    arguments += ["--autoencoder-steps", "2", "--per-class", "1", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "load_split", lambda folder, split: toys)
        result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "training captions, steps 25: recognised" in result.output
    return out


def test_command_writes_a_pipeline(trained):
    description = json.loads((trained / "pecker_fast.json").read_text())
    assert description["training"]["denoiser"]["steps"] == 2
    assert [figure["per_class"] for figure in description["figures"]] == [1, 1, 1]
    assert not trained.with_name("pipeline.partial").exists()
    pipeline = load(trained)
    image = pipeline("a photo of a bag", num_inference_steps=2).images[0]
    assert image.size == (32, 32) and image.mode == "L"


def test_the_folder_keeps_the_names_that_older_versions_read(trained):
    weights = load_file(trained / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    tokenizer = {path.name for path in (trained / "tokenizer").iterdir()}
    assert tokenizer >= {"vocab.json", "merges.txt", "tokenizer_config.json"}


def test_loading_loses_nothing(trained):
    pipeline = load(trained)
    weights = load_file(trained / "text_encoder" / "model.safetensors")
    loaded = pipeline.text_encoder.state_dict()
    prefix = "" if "text_model." in next(iter(loaded)) else "text_model."
    for name, value in loaded.items():
        assert torch.equal(value, weights[prefix + name]), name


def test_command_refuses_a_folder_that_exists(tmp_path):
    result = CliRunner().invoke(group, ["train-pipeline", "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert "exists; name a new folder" in str(result.exception)


def test_an_image_does_not_depend_on_those_after_it(trained):
    pipeline = load(trained)
    prompts = ["a bag", "a boot", "a coat"]
    for steps in (1, 2):
        three = draw_images(pipeline, prompts, steps, 3.0)
        one = draw_images(pipeline, prompts[:1], steps, 3.0)
        assert three.shape == (3, 1, 28, 28) and three.abs().max() <= 1
        # A batch of another size may be summed in another order.
        assert torch.allclose(one[0], three[0], atol=1e-4)
        assert not torch.allclose(three[0], three[1], atol=1e-2)
