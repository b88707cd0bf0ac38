"""Samplers of pipelines: against the formula written out, and against diffusers' own pipeline."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny_pipeline import CHANNELS, SIDE, save_tiny_pipeline
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models.pipeline import PipelineFolder

PROMPTS = ["a cat", "a red dog", "", "a cat", "trees"]
PREDICTIONS = ("epsilon", "v_prediction")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Prediction type -> the folder as we load it, and as diffusers has it."""
    found = {}
    for prediction in PREDICTIONS:
        folder = tmp_path_factory.mktemp(prediction)
        theirs = save_tiny_pipeline(folder, prediction)
        found[prediction] = PipelineFolder.load(folder), theirs
    return found


@pytest.fixture
def pipeline(pipelines):
    return pipelines["epsilon"][0]


class Silent(nn.Module):
    """Predicts no noise, so that samples are the noise they came from, times b / a."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, x, t, encoder_hidden_states):
        self.batches.append(len(x))
        return SimpleNamespace(sample=torch.zeros_like(x))


def noise_of(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randn(CHANNELS, SIDE, SIDE, generator=generator) for _ in range(count)]
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t_init", [0, 625, 999])
def test_one_step_is_the_formula(pipelines, prediction, t_init):
    folder, theirs = pipelines[prediction]
    latents = Sampler(1, 3, t_init, batch_size=2).latents(folder, PROMPTS)

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)[t_init]
    a, b = abar.sqrt(), (1 - abar).sqrt()
    unet = copy.deepcopy(theirs.unet).double()
    z = b * noise_of(3, len(PROMPTS)).double()
    words, _ = theirs.encode_prompt(PROMPTS, "cpu", 1, False)
    with torch.no_grad():
        output = unet(z, t_init, encoder_hidden_states=words.double()).sample
    expected = a * z - b * output if prediction == "v_prediction" else (z - b * output) / a
    # float32 against float64; at t = 999 the division by a = 0.07 enlarges rounding errors.
    torch.testing.assert_close(latents.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, "a dog"), (4.5, ""), (4.5, "a dog")])
def test_many_steps_are_what_diffusers_draws(pipelines, prediction, guidance, negative):
    folder, theirs = pipelines[prediction]
    sampler = Sampler(7, 5, batch_size=3, guidance=guidance, negative=negative)
    latents = sampler.latents(folder, PROMPTS)
    expected = theirs(
        PROMPTS,
        negative_prompt=[negative] * len(PROMPTS),
        num_inference_steps=7,
        guidance_scale=guidance,
        latents=noise_of(5, len(PROMPTS)),
        output_type="latent",
    ).images
    # float32 in another order of operations, over seven steps; latents reach some tens.
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_images_are_what_diffusers_decodes(pipelines):
    folder, theirs = pipelines["epsilon"]
    latents = 0.3 * noise_of(1, 5)
    images = folder.images(latents) / 2 + 0.5
    with torch.no_grad():
        expected = theirs.vae.decode(latents / 0.7).sample
    assert images.shape == (5, 3, 2 * SIDE, 2 * SIDE) and 0 <= images.min() < images.max() <= 1
    # Two float32 convolutions of other batch sizes.
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-6)


def test_grey_images_get_three_channels(tmp_path):
    save_tiny_pipeline(tmp_path, image_channels=1)
    images = PipelineFolder.load(tmp_path).images(noise_of(0, 2))
    assert images.shape == (2, 3, 2 * SIDE, 2 * SIDE)
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("steps", [1, 25])
def test_noise_depends_on_seed_and_index_alone(pipeline, steps):
    def draw(seed, count, batch_size):
        sampler = Sampler(steps, seed, batch_size=batch_size)
        return sampler.latents(pipeline, ["a cat"] * count, network=Silent())

    five = draw(7, 5, 5)
    assert torch.equal(draw(7, 5, 2), five)
    assert torch.equal(draw(7, 3, 1), five[:3])
    assert not torch.equal(five[0], five[1])
    assert not torch.equal(draw(8, 5, 5), five)
    # x0 / noise is the same constant everywhere: nothing else went in.
    ratio = five / noise_of(7, 5)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-5, atol=0)


def test_guidance_is_one_doubled_batch_and_no_guidance_none(pipeline):
    for guidance, batches in ((4.5, [6, 6, 4, 4]), (1, [3, 3, 2, 2])):
        network = Silent()
        Sampler(2, batch_size=3, guidance=guidance).latents(pipeline, PROMPTS, network=network)
        assert network.batches == batches
    network = Silent()
    Sampler(batch_size=3).latents(pipeline, PROMPTS, network=network)
    assert network.batches == [3, 2]


def test_batches_are_bounded_by_latent_size(pipeline):
    many = ["a cat"] * 200
    assert Sampler().size(pipeline, many) == 128
    assert Sampler().size(SimpleNamespace(shape=(4, 64, 64)), many) == 16


def test_networks_in_bfloat16(pipeline):
    small = copy.deepcopy(pipeline.network).bfloat16()
    expected = Sampler().latents(pipeline, PROMPTS)
    found = Sampler().latents(pipeline, PROMPTS, network=small)
    assert found.dtype == torch.float32
    # bfloat16 keeps 8 bits; through a dozen layers a hundredth of the largest value remains right.
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()
    guided = Sampler(25, guidance=4.5).latents(pipeline, PROMPTS, network=small)
    assert guided.isfinite().all()


def test_latents_are_not_clipped_whatever_scheduler_the_folder_has(pipelines, tmp_path):
    _, theirs = pipelines["epsilon"]
    folder = tmp_path / "euler"
    theirs.save_pretrained(folder)
    EulerDiscreteScheduler.from_config(theirs.scheduler.config).save_pretrained(
        folder / "scheduler"
    )
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    config.pop("clip_sample", None)  # diffusers hands the settings of DDIM on
    file.write_text(json.dumps(config))
    assert DDIMScheduler.from_config(config).config.clip_sample  # what would happen otherwise
    latents = Sampler(25).latents(PipelineFolder.load(folder), ["a cat"], network=Silent())
    assert latents.abs().max() > 5


def test_the_pipeline_says_where_one_step_starts(pipeline, tmp_path):
    pipeline.save(tmp_path / "erased", card={"t_init": 500})
    erased = PipelineFolder.load(tmp_path / "erased")
    assert (Sampler().start(pipeline), Sampler().start(erased)) == (625, 500)
    default = Sampler().latents(erased, PROMPTS)
    assert torch.equal(default, Sampler(t_init=500).latents(erased, PROMPTS))
    assert not torch.equal(default, Sampler(t_init=625).latents(erased, PROMPTS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_init": 1000}, "t_init"),
        ({"steps": 1001}, "steps"),
        # With steps_offset 1 the last of 1,000 steps would be time step 1,000 of 0 .. 999.
        ({"steps": 1000}, "or fewer"),
    ],
)
def test_bad_input(pipeline, settings, message):
    with pytest.raises(PeckerError, match=message):
        Sampler(**settings).latents(pipeline, ["a"])


def test_no_prompts(pipeline):
    with pytest.raises(PeckerError, match="nothing to draw"):
        Sampler().sample(pipeline, [])
