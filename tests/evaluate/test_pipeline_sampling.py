"""Samplers of pipelines: against the formula written out, and against diffusers' own pipeline."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict
from tiny_pipeline import CHANNELS, SIDE, save_tiny_pipeline
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
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
    latents = PipelineSampler(folder, batch_size=2).latents(
        folder.network, PROMPTS, 3, t_init=t_init
    )

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
    latents = PipelineSampler(folder, batch_size=3).latents(
        folder.network, PROMPTS, seed=5, steps=7, guidance=guidance, negative=negative
    )
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
    images = PipelineSampler(folder).images(latents)
    with torch.no_grad():
        expected = theirs.vae.decode(latents / 0.7).sample
    assert images.shape == (5, 3, 2 * SIDE, 2 * SIDE) and 0 <= images.min() < images.max() <= 1
    # Two float32 convolutions of other batch sizes.
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-6)


def test_grey_images_get_three_channels(tmp_path):
    save_tiny_pipeline(tmp_path, image_channels=1)
    images = PipelineSampler(PipelineFolder.load(tmp_path)).images(noise_of(0, 2))
    assert images.shape == (2, 3, 2 * SIDE, 2 * SIDE)
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("steps", [1, 25])
def test_noise_depends_on_seed_and_index_alone(pipeline, steps):
    def draw(seed, count, batch_size):
        sampler = PipelineSampler(pipeline, batch_size=batch_size)
        return sampler.latents(Silent(), ["a cat"] * count, seed, steps)

    five = draw(7, 5, 5)
    assert torch.equal(draw(7, 5, 2), five)
    assert torch.equal(draw(7, 3, 1), five[:3])
    assert not torch.equal(five[0], five[1])
    assert not torch.equal(draw(8, 5, 5), five)
    # x0 / noise is the same constant everywhere: nothing else went in.
    ratio = five / noise_of(7, 5)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-5, atol=0)


def test_guidance_is_one_doubled_batch_and_no_guidance_none(pipeline):
    sampler = PipelineSampler(pipeline, batch_size=3)
    for guidance, batches in ((4.5, [6, 6, 4, 4]), (1, [3, 3, 2, 2])):
        network = Silent()
        sampler.latents(network, PROMPTS, 0, 2, guidance=guidance)
        assert network.batches == batches
    network = Silent()
    sampler.latents(network, PROMPTS, 0)
    assert network.batches == [3, 2]


def test_batches_are_bounded_by_latent_size(pipeline):
    assert PipelineSampler(pipeline).batch_size == 128
    large = SimpleNamespace(
        network_shape=(4, 64, 64), scheduler_config=pipeline.scheduler_config, description={}
    )
    sizes = []
    decoder = nn.Identity()
    decoder.config = FrozenDict(block_out_channels=(8,))
    large.vae = decoder
    large.images = lambda part: sizes.append(len(part)) or part
    sampler = PipelineSampler(large)
    sampler.images(torch.zeros(9, 1, 1, 1))
    assert (sampler.batch_size, sizes) == (16, [4, 4, 1])


def test_networks_in_bfloat16(pipeline):
    sampler = PipelineSampler(pipeline)
    expected = sampler.latents(pipeline.network, PROMPTS, 0)
    found = sampler.latents(copy.deepcopy(pipeline.network).bfloat16(), PROMPTS, 0)
    assert found.dtype == torch.float32
    # bfloat16 keeps 8 bits; through a dozen layers a hundredth of the largest value remains right.
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert (
        sampler.latents(copy.deepcopy(pipeline.network).bfloat16(), PROMPTS, 0, 25, guidance=4.5)
        .isfinite()
        .all()
    )


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
    latents = PipelineSampler(PipelineFolder.load(folder)).latents(Silent(), ["a cat"], 0, 25)
    assert latents.abs().max() > 5


def test_the_pipeline_says_where_one_step_starts(pipeline, tmp_path):
    pipeline.save(tmp_path / "erased", card={"t_init": 500})
    erased = PipelineFolder.load(tmp_path / "erased")
    sampler = PipelineSampler(erased)
    assert (PipelineSampler(pipeline).t_init, sampler.t_init) == (625, 500)
    default = sampler.latents(erased.network, PROMPTS, 0)
    assert torch.equal(default, sampler.latents(erased.network, PROMPTS, 0, t_init=500))
    assert not torch.equal(default, sampler.latents(erased.network, PROMPTS, 0, t_init=625))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, u: s.latents(u, ["a"], -1), "seed"),
        (lambda s, u: s.latents(u, ["a"], 2**64), "seed"),
        (lambda s, u: s.latents(u, ["a"], 0, 2, guidance=float("nan")), "guidance"),
        (lambda s, u: s.latents(u, ["a"], 0, 2, guidance=-1), "guidance"),
        (lambda s, u: s.latents(u, [], 0), "no prompts"),
        (lambda s, u: s.latents(u, ["a"], 0, t_init=1000), "t_init"),
        (lambda s, u: s.latents(u, ["a"], 0, steps=0), "steps"),
        (lambda s, u: s.latents(u, ["a"], 0, steps=1001), "steps"),
        # With steps_offset 1 the last of 1,000 steps would be time step 1,000 of 0 .. 999.
        (lambda s, u: s.latents(u, ["a"], 0, steps=1000), "or fewer"),
        (lambda s, u: PipelineSampler(s.pipeline, batch_size=0), "batch_size"),
    ],
)
def test_bad_input(pipeline, call, message):
    with pytest.raises(PeckerError, match=message):
        call(PipelineSampler(pipeline), pipeline.network)
