"""Each loss against the formula written out for one sample at a time, values and gradients."""

import copy
from functools import partial

import pytest
import torch
from toys import ToyDenoiser

from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.methods.losses import (
    denoising_loss,
    esd_loss,
    guided_denoising_loss,
    random_label_loss,
)

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
T = torch.tensor([0, 999, 17, 500, 731, 42])
NOTHING, ETA = torch.tensor(4), 1.7


def square(difference):
    return difference.square().sum()


# Of a sample: own(label) and old(label) predict, the latter without a gradient; e is the noise.
FORMULAS = {
    "denoising": lambda own, old, e, told, other: square(e - own(told)),
    "guided": lambda own, old, e, told, other: square(e - (3 * own(told) - 2 * own(NOTHING))),
    "random_label": lambda own, old, e, told, other: square(own(told) - own(other).detach()) / 64,
    "esd": lambda own, old, e, told, other: (
        square(own(told) - ((1 + ETA) * old(NOTHING) - ETA * old(told))) / 64
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_is_the_formula(name):
    torch.manual_seed(1)
    network = ToyDenoiser(num_classes=5, dropout=0.0).double()
    original = copy.deepcopy(network).requires_grad_(False)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn_like(param))
    images, noise = torch.rand(2, 6, 1, 8, 8, dtype=torch.float64) * 2 - 1
    told, other = torch.tensor([2, 2, 4, 2, 1, 4]), torch.tensor([3, 4, 3, 3, 3, 4])
    noisy = NoiseSchedule.from_betas(BETAS).add_noise(images, noise, T)

    def ask(which, labels):
        return which(noisy, T, labels)

    ours = {
        "denoising": lambda: denoising_loss(noise, ask(network, told)),
        "guided": lambda: guided_denoising_loss(ask, network, noise, told, 4),
        "random_label": lambda: random_label_loss(ask, network, told, other),
        "esd": lambda: esd_loss(ask, network, original, told, 4, ETA),
    }[name]()
    expected = []
    for i in range(6):
        abar = torch.prod(1 - BETAS[: T[i] + 1])
        x_t = abar.sqrt() * images[i] + (1 - abar).sqrt() * noise[i]

        def own(label, which=network, x_t=x_t[None], t=T[i : i + 1]):
            return which(x_t, t, label.reshape(1))[0]

        old = partial(own, which=original)
        expected.append(FORMULAS[name](own, old, noise[i], told[i], other[i]))
    expected = torch.stack(expected)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    gradients = (
        torch.autograd.grad(loss.sum(), list(network.parameters()), allow_unused=True)
        for loss in (ours, expected)
    )
    for one, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(one, theirs, rtol=1e-9, atol=1e-11)


def test_without_a_label_for_no_class_there_is_no_guidance():
    noise, predicted = torch.randn(2, 3, 1, 8, 8)
    ours = guided_denoising_loss(lambda *_: predicted, None, noise, torch.zeros(3), None)
    assert torch.equal(ours, denoising_loss(noise, predicted))
