"""Each loss against the formula written out with plain torch, values and gradients."""

import copy

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


@pytest.fixture
def case():
    """A network, how it is asked, noise, time steps and noisy images written out; in float64."""
    torch.manual_seed(1)
    network = ToyDenoiser(num_classes=5, dropout=0.0).double()
    images, noise = torch.rand(2, 6, 1, 8, 8, dtype=torch.float64) * 2 - 1
    t = torch.tensor([0, 999, 17, 500, 731, 42])
    abar = [float(torch.prod(1 - BETAS[: step + 1])) for step in t]
    x_t = torch.stack(
        [a**0.5 * x + (1 - a) ** 0.5 * e for a, x, e in zip(abar, images, noise, strict=True)]
    )
    noisy = NoiseSchedule.from_betas(BETAS).add_noise(images, noise, t)
    return network, (lambda network, labels: network(noisy, t, labels)), noise, t, x_t


def gradients(network, loss):
    return torch.autograd.grad(
        loss, list(network.parameters()), allow_unused=True, retain_graph=True
    )


def agree(network, ours, expected):
    """ours (N,), expected: a list of N scalars."""
    expected = torch.stack(expected)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    pairs = zip(gradients(network, ours.sum()), gradients(network, expected.sum()), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def ask(network, x_t, t, label):
    """One sample at a time."""
    return network(x_t[None], t[None], torch.tensor([label]))[0]


def test_denoising_sums_over_pixels(case):
    network, ask_all, noise, t, x_t = case
    labels = [0, 1, 2, 3, 4, 0]
    predicted = ask_all(network, torch.tensor(labels))
    ours = denoising_loss(noise, predicted)
    expected = [
        sum((noise[i] - ask(network, x_t[i], t[i], labels[i])).flatten() ** 2) for i in range(6)
    ]
    agree(network, ours, expected)


def test_random_label_is_a_mean_over_pixels_without_a_gradient_of_its_target(case):
    network, ask_all, _, t, x_t = case
    frozen = copy.deepcopy(network)
    told, imitated = [2, 2, 4, 2, 2, 4], [3, 4, 3, 3, 3, 4]
    ours = random_label_loss(ask_all, network, torch.tensor(told), torch.tensor(imitated))
    expected = []
    for i in range(6):
        target = ask(frozen, x_t[i], t[i], imitated[i]).detach()
        difference = ask(network, x_t[i], t[i], told[i]) - target
        expected.append((difference**2).sum() / 64)
    agree(network, ours, expected)
    assert ours[5] == 0  # told and imitated are the same


def test_esd_leads_away_from_the_class(case):
    network, ask_all, _, t, x_t = case
    original = copy.deepcopy(network)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn_like(param))
    labels, eta = torch.full((6,), 2), 1.7
    ours = esd_loss(ask_all, network, original, labels, 4, eta)
    expected = []
    for i in range(6):
        e_class = ask(original, x_t[i], t[i], 2).detach()
        e_none = ask(original, x_t[i], t[i], 4).detach()
        target = (1 + eta) * e_none - eta * e_class
        expected.append(((ask(network, x_t[i], t[i], 2) - target) ** 2).mean())
    agree(network, ours, expected)
    assert all(param.grad is None for param in original.parameters())


def test_guided_denoising_is_the_saliency_loss(case):
    network, ask_all, noise, t, x_t = case
    labels = torch.full((6,), 1)
    ours = guided_denoising_loss(ask_all, network, noise, labels, 4)
    expected = []
    for i in range(6):
        guided = 3 * ask(network, x_t[i], t[i], 1) - 2 * ask(network, x_t[i], t[i], 4)
        expected.append(((noise[i] - guided) ** 2).sum())
    agree(network, ours, expected)
    without = guided_denoising_loss(ask_all, network, noise, labels, None)
    assert torch.equal(without, denoising_loss(noise, ask_all(network, labels)))
