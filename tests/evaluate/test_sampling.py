"""Sampling: the formulas, determinism, and independence of batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_unet

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet

LABELS = torch.tensor([0, 1, 2, 2, 1])
KINDS = [
    {"steps": 1},
    {"steps": 3},
    {"steps": 3, "eta": 1.0},
    {"steps": 4, "method": "ddpm"},
]


class Zero(torch.nn.Module):
    """Predicts no noise at all, in diffusers' calling convention."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, class_labels):
        return type("Output", (), {"sample": torch.zeros_like(sample)})


class Gaussian(Zero):
    """Predicts the noise exactly where the images are normal with standard deviation 0.2.

    With a network, its answers are added, so that classes differ. Images then stay inside [-1, 1]
    for the most part; those of an untrained network alone are all clamped.
    """

    def __init__(self, config, abar, network=None):
        super().__init__(config)
        self.abar, self.network = abar, network

    def forward(self, sample, timestep, class_labels):
        abar = self.abar[torch.as_tensor(timestep)].view(-1, 1, 1, 1)
        noise = (1 - abar).sqrt() / (abar * 0.2**2 + 1 - abar) * sample
        if self.network is not None:
            noise = noise + 0.2 * self.network(sample, timestep, class_labels).sample
            noise = noise + 0.05 * (class_labels.view(-1, 1, 1, 1) - 1)
        return type("Output", (), {"sample": noise})


@pytest.fixture
def model(tiny_model):
    """The tiny model, made to predict much of the noise."""
    return sensible(tiny_model)


def sensible(model):
    abar = model.scheduler.alphas_cumprod
    return replace(model, network=Gaussian(model.network.config, abar, model.network))


def assert_images(drawn, expected, tolerance=1e-5):
    """Close, and not all clamped, which would hide what differs."""
    assert float((drawn.abs() < 1).float().mean()) > 0.5
    assert torch.allclose(drawn, expected.float().clamp(-1, 1), atol=tolerance)


@pytest.fixture
def with_null(tiny_model):
    """The same with one more row in the table, for "no class"."""
    unet = tiny_unet(4, (1, 8, 8))
    return sensible(replace(tiny_model, network=unet, null_label=3))


def streams_of(seed, count):
    """One generator per image, as the steps of its random sampler draw from it."""
    seeds = [
        np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in range(count)
    ]
    return [torch.Generator().manual_seed(int(s) >> 1) for s in seeds]


def noise_of(seed, count, shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])


def test_t_init_of_the_linear_schedule(tiny_model):
    assert Sampler().settings(tiny_model, LABELS)["t_init"] == 440


def test_one_step_of_the_network(model):
    images = Sampler(steps=1, seed=3, t_init=300).sample(model, LABELS)
    abar = model.scheduler.alphas_cumprod[300]
    z = (1 - abar).sqrt() * noise_of(3, 5, (1, 8, 8))
    with torch.no_grad():
        eps = model.network(z, torch.full((5,), 300), class_labels=LABELS).sample
    assert_images(images, (z - (1 - abar).sqrt() * eps) / abar.sqrt())


def test_the_folder_names_its_own_t_init(model):
    named = replace(model, figures={"t_init": 300})
    expected = Sampler(t_init=300).sample(model, LABELS)
    assert torch.equal(Sampler().sample(named, LABELS), expected)


def test_ddim_with_noise_by_hand(model):
    images = Sampler(steps=4, seed=1, eta=0.5).sample(model, LABELS)
    abar = model.scheduler.alphas_cumprod.double()
    x, streams = noise_of(1, 5, (1, 8, 8)), streams_of(1, 5)
    with torch.no_grad():
        for t in (750, 500, 250, 0):
            eps = model.network(x, t, class_labels=LABELS).sample
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            following = abar[t - 250] if t else torch.tensor(1.0)
            sigma = 0.5 * ((1 - following) / (1 - abar[t]) * (1 - abar[t] / following)).sqrt()
            fresh = torch.stack([torch.randn(1, 8, 8, generator=s) for s in streams])
            towards = (1 - following - sigma**2).sqrt() * eps
            x = (following.sqrt() * clean + towards + sigma * fresh).float()
    assert_images(images, x)


def test_ddpm_as_published(model):
    """The ancestral steps of SA, SalUn and SFD: x_0 clamped, variance beta of the longer step."""
    images = Sampler(steps=4, seed=1, method="ddpm").sample(model, LABELS)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cat([torch.ones(1, dtype=torch.float64), 1 - betas]).cumprod(0)  # abar[t + 1]
    sequence = list(range(0, 1000, 250))
    x, streams = noise_of(1, 5, (1, 8, 8)), streams_of(1, 5)
    with torch.no_grad():
        for i, j in zip(reversed(sequence), [*reversed(sequence[:-1]), -1], strict=True):
            at, following = abar[i + 1], abar[j + 1]
            beta = 1 - at / following
            eps = model.network(x, i, class_labels=LABELS).sample
            clean = ((1 / at).sqrt() * x - (1 / at - 1).sqrt() * eps).clamp(-1, 1)
            mean = following.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - following) * x
            x = mean / (1 - at)
            if i:
                fresh = torch.stack([torch.randn(1, 8, 8, generator=s) for s in streams])
                x = x + beta.sqrt() * fresh
            x = x.float()
    assert_images(images, x)


@pytest.mark.parametrize(
    "sampler", [{"steps": 250, "method": "ddpm"}, {"steps": 100}, {"steps": 250, "eta": 1.0}]
)
def test_a_perfect_network_gives_the_distribution_of_its_images(tiny_model, sampler):
    # Normal images of standard deviation 0.2: the network's answer is known in closed form.
    abar = tiny_model.scheduler.alphas_cumprod
    model = replace(tiny_model, network=Gaussian(tiny_model.network.config, abar))
    images = Sampler(**sampler).sample(model, torch.zeros(64, dtype=torch.int64))
    assert abs(float(images.mean())) < 4 * 0.2 / math.sqrt(images.numel())
    assert float(images.std()) == pytest.approx(0.2, abs=0.02)


def test_guidance_by_hand(with_null):
    abar = with_null.scheduler.alphas_cumprod
    images = Sampler(steps=2, seed=1, guidance=2.0).sample(with_null, LABELS)
    x = noise_of(1, 5, (1, 8, 8))
    with torch.no_grad():
        for t in (500, 0):
            eps = with_null.network(x, t, class_labels=LABELS).sample
            null = with_null.network(x, t, class_labels=torch.full((5,), 3)).sample
            eps = 3 * eps - 2 * null
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            following = abar[0] if t else torch.tensor(1.0)
            x = following.sqrt() * clean + (1 - following).sqrt() * eps
    assert_images(images, x)
    none = Sampler(steps=2, seed=1).sample(with_null, LABELS)
    assert not torch.allclose(images, none, atol=0.01)


def test_guidance_of_a_published_network(tiny_model):
    torch.manual_seed(1)
    unet = DDPMUNet(
        sample_size=8, in_channels=1, num_classes=3, channels=32, channel_mult=(1, 1),
    ).eval()  # fmt: skip
    asked = []
    unet.register_forward_pre_hook(lambda module, args: asked.append(args))
    model = ModelFolder(unet, tiny_model.scheduler, tiny_model.class_names)
    images = Sampler(steps=2, method="ddpm", guidance=2.0).sample(model, LABELS)
    assert images.shape == (5, 1, 8, 8)
    for (x, t, labels), step in zip(asked, (500, 0), strict=True):
        assert torch.equal(x[:5], x[5:])
        assert t.tolist() == [step] * 10
        assert labels.tolist() == [*[unet.null_label] * 5, *LABELS.tolist()]


@pytest.mark.parametrize("settings", KINDS)
def test_same_seed_same_images(model, settings):
    sampler = Sampler(**settings, seed=5)
    state = torch.get_rng_state()
    first = sampler.sample(model, LABELS)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator plays no part
    assert torch.equal(sampler.sample(model, LABELS), first)
    assert not torch.equal(replace(sampler, seed=6).sample(model, LABELS), first)


@pytest.mark.parametrize("settings", KINDS)
def test_an_image_depends_neither_on_the_batch_size_nor_on_later_images(model, settings):
    whole = Sampler(**settings).sample(model, LABELS)
    parts = Sampler(**settings, batch_size=2).sample(model, LABELS)
    fewer = Sampler(**settings).sample(model, LABELS[:3])
    assert torch.allclose(parts, whole, atol=1e-5)
    assert torch.allclose(fewer, whole[:3], atol=1e-5)


@pytest.mark.parametrize("settings", KINDS)
def test_batches_that_are_drawn_alone_have_the_same_bits(model, settings):
    sampler = Sampler(**settings, batch_size=2)
    whole = sampler.sample(model, LABELS)
    drawn = list(sampler.batches(model, LABELS, only=[0, 2]))
    assert [(part.start, part.stop) for part, _ in drawn] == [(0, 2), (4, 5)]
    for part, images in drawn:
        assert torch.equal(images, whole[part])
    assert list(sampler.batches(model, LABELS, only=[])) == []


def test_the_sampler_as_figures(tiny_model):
    figures = Sampler(seed=4).settings(tiny_model, LABELS)
    expected = {"sampler": "one-step", "steps": 1, "t_init": 440, "guidance": 0.0, "seed": 4}
    assert {name: figures[name] for name in expected} == expected
    figures = Sampler(1000, method="ddpm", guidance=2, eta=0.0).settings(tiny_model, LABELS)
    assert figures["t_init"] is None and figures["sampler"] == "ddpm"
    assert "1000" in figures["description"] and "2" in figures["description"]


def test_patches_are_laid_out(tiny_model):
    # The fixture sees 1 channel; a stand-in sees 4, two by two pixels each.
    config = type("Config", (), {"sample_size": 4, "in_channels": 4})
    model = replace(tiny_model, network=Zero(config), patch_size=2)
    assert Sampler().sample(model, LABELS).shape == (5, 1, 8, 8)


def test_balanced_labels():
    assert balanced_labels(3, 2).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("sampler", "labels", "named"),
    [
        ({"steps": 0}, LABELS, "steps"),
        ({"batch_size": 0}, LABELS, "batch_size"),
        ({"steps": 1001}, LABELS, "1000"),
        ({"steps": 600}, LABELS, "divides 1000"),
        ({"steps": 300, "method": "ddpm"}, LABELS, "divide the 1000"),
        ({"steps": 2000, "method": "ddpm"}, LABELS, "1000"),
        ({"seed": -1}, LABELS, "seed"),
        ({"seed": 2**64}, LABELS, "seed"),
        ({"method": "euler"}, LABELS, "'euler'"),
        ({"method": "one-step", "steps": 2}, LABELS, "one-step"),
        ({"method": "ddpm"}, LABELS, "ddpm"),
        ({"guidance": 2.0}, LABELS, "null_label"),
        ({"steps": 2, "guidance": -1.0}, LABELS, "guidance"),
        ({"steps": 2, "guidance": float("nan")}, LABELS, "guidance"),
        ({"steps": 2, "guidance": 2.0}, LABELS, "null_label"),
        ({"steps": 2, "eta": 1.5}, LABELS, "eta"),
        ({"steps": 2, "eta": 0.5, "method": "ddpm"}, LABELS, "eta"),
        ({"t_init": 1000}, LABELS, "t_init"),
        ({}, torch.tensor([0, 3]), r"\[0, 3\), got 0 to 3"),
        ({}, torch.tensor([-1, 2]), "got -1 to 2"),
    ],
)
def test_bad_input(tiny_model, sampler, labels, named):
    with pytest.raises(PeckerError, match=named):
        Sampler(**sampler).sample(tiny_model, labels)


def test_more_images_than_can_be_kept():
    with pytest.raises(PeckerError, match="30,000,000,000 images"):
        balanced_labels(3, 10**10)
