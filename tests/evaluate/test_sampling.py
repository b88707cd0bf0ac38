"""Sampling: the formulas, determinism, and independence of the batch size."""

from dataclasses import replace

import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sampling import Sampler, balanced_labels, default_t_init

LABELS = torch.tensor([0, 1, 2, 2, 1])


class Zero(torch.nn.Module):
    """Predicts no noise at all, in diffusers' calling convention."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, class_labels):
        return type("Output", (), {"sample": torch.zeros_like(sample)})


def noise_of(seed, count, shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])


def test_t_init_of_the_linear_schedule(tiny_model):
    assert default_t_init(tiny_model.scheduler) == 440


def test_one_step_of_a_network_that_sees_no_noise(tiny_model):
    model = replace(tiny_model, unet=Zero(tiny_model.unet.config))
    images = Sampler(steps=1, seed=3).sample(model, LABELS)
    abar = tiny_model.scheduler.alphas_cumprod[440].double()
    expected = (((1 - abar) / abar).sqrt() * noise_of(3, 5, (1, 8, 8))).clamp(-1, 1)
    assert torch.allclose(images, expected.float(), atol=1e-5)


def test_one_step_of_the_network(tiny_model):
    images = Sampler(steps=1, seed=3, t_init=300).sample(tiny_model, LABELS)
    abar = tiny_model.scheduler.alphas_cumprod[300]
    z = (1 - abar).sqrt() * noise_of(3, 5, (1, 8, 8))
    with torch.no_grad():
        eps = tiny_model.unet(z, torch.full((5,), 300), class_labels=LABELS).sample
    expected = ((z - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
    assert torch.allclose(images, expected, atol=1e-5)


def test_the_folder_names_its_own_t_init(tiny_model):
    named = replace(tiny_model, figures={"t_init": 300})
    expected = Sampler(t_init=300).sample(tiny_model, LABELS)
    assert torch.equal(Sampler().sample(named, LABELS), expected)


def test_ddim_by_hand(tiny_model):
    images = Sampler(steps=4, seed=1).sample(tiny_model, LABELS)
    abar = tiny_model.scheduler.alphas_cumprod
    x = noise_of(1, 5, (1, 8, 8))
    with torch.no_grad():
        for t in (750, 500, 250, 0):
            eps = tiny_model.unet(x, t, class_labels=LABELS).sample
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            following = abar[t - 250] if t else torch.tensor(1.0)
            x = following.sqrt() * clean + (1 - following).sqrt() * eps
    assert torch.allclose(images, x.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_same_seed_same_images(tiny_model, steps):
    sampler = Sampler(steps=steps, seed=5)
    first = sampler.sample(tiny_model, LABELS)
    torch.randn(7)  # the global generator plays no part
    assert torch.equal(sampler.sample(tiny_model, LABELS), first)
    assert not torch.equal(replace(sampler, seed=6).sample(tiny_model, LABELS), first)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_image_depends_neither_on_the_batch_size_nor_on_later_images(tiny_model, steps):
    whole = Sampler(steps=steps).sample(tiny_model, LABELS)
    parts = Sampler(steps=steps, batch_size=2).sample(tiny_model, LABELS)
    fewer = Sampler(steps=steps).sample(tiny_model, LABELS[:3])
    assert torch.allclose(parts, whole, atol=1e-5)
    assert torch.allclose(fewer, whole[:3], atol=1e-5)


def test_patches_are_laid_out(tiny_model):
    # The fixture sees 1 channel; a stand-in sees 4, two by two pixels each.
    config = type("Config", (), {"sample_size": 4, "in_channels": 4})
    model = replace(tiny_model, unet=Zero(config), patch_size=2)
    assert Sampler().sample(model, LABELS).shape == (5, 1, 8, 8)


def test_balanced_labels():
    assert balanced_labels(3, 2).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("sampler", "labels", "message"),
    [
        ({"steps": 0}, LABELS, "steps must be at least 1"),
        ({"batch_size": 0}, LABELS, "batch_size must be at least 1"),
        ({"steps": 1001}, LABELS, "at most the 1000 steps"),
        ({"t_init": 1000}, LABELS, "t_init must be in"),
        ({}, torch.tensor([0, 3]), r"labels must lie in \[0, 3\), got 0 to 3"),
        ({}, torch.tensor([-1, 2]), "got -1 to 2"),
    ],
)
def test_bad_input(tiny_model, sampler, labels, message):
    with pytest.raises(PeckerError, match=message):
        Sampler(**sampler).sample(tiny_model, labels)
