"""The losses against the equations of the method, written out a second time with autograd."""

import pytest
import torch
from diffusers import DDPMScheduler
from toys import ToyDenoiser, tiny_unet
from written_out import ell

from pecker_fast.distill.losses import distillation_loss, one_step_sample
from pecker_fast.distill.networks import compute_dtype, predict_noise, with_autocast
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError

SCHEDULE = NoiseSchedule.from_scheduler(DDPMScheduler())
ALPHAS = [1.2, 1.0, 0.5]


def three_images(count=5):
    return [torch.randn(count, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_closed_form_gradients_equal_autograd(alpha):
    p, s, x_g = three_images()
    weight = torch.rand(5, dtype=torch.float64)
    expected = ell(p, s, s, x_g, alpha)
    gradients = torch.autograd.grad((weight * expected).sum(), (p, s, x_g))
    loss, g_p, g_r = distillation_loss(p, s, s, x_g, alpha)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    scale = weight.view(-1, 1, 1, 1)
    closed = g_p, g_r - g_p, -g_r
    for ours, theirs in zip(closed, gradients, strict=True):
        torch.testing.assert_close(scale * ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_closed_form_gradients_equal_finite_differences(alpha):
    # omega depends on p and x_g but carries no gradient: frozen in the difference quotient.
    images = [image.detach() for image in three_images(2)]
    omega = (images[0] - images[2]).abs().mean((1, 2, 3))
    h = 1e-6

    def total(p, s, x_g):
        terms = (p - s) * ((p - x_g) - alpha * (p - s))
        return (terms.sum((1, 2, 3)) / omega).sum()

    p, s, x_g = images
    _, g_p, g_r = distillation_loss(p, s, s, x_g, alpha)
    for which, gradient in enumerate((g_p, g_r - g_p, -g_r)):
        numeric = torch.empty_like(gradient)
        for entry in range(numeric.numel()):
            shifted = []
            for sign in (1, -1):
                moved = [image.clone() for image in images]
                moved[which].view(-1)[entry] += sign * h
                shifted.append(total(*moved))
            numeric.view(-1)[entry] = (shifted[0] - shifted[1]) / (2 * h)
        # The loss is quadratic, so only rounding is left: 1e-16 * |loss| / h.
        torch.testing.assert_close(gradient, numeric, rtol=1e-7, atol=1e-7)


def test_omega_has_a_floor():
    p, s, _ = (image.detach() for image in three_images(1))
    loss, *_ = distillation_loss(p, s, s, p.clone(), 1.2)
    expected = ((p - s) * (-1.2 * (p - s))).sum() / 1e-5
    torch.testing.assert_close(loss[0], expected, rtol=1e-12, atol=0)


def test_a_unet_is_called_with_its_class_labels():
    unet = tiny_unet().eval()
    x, t, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 40, 440, 999]), torch.arange(4)
    with torch.no_grad():
        expected = unet(x, t, class_labels=labels).sample
        assert torch.equal(predict_noise(unet, x, t, labels), expected)
        assert not torch.equal(predict_noise(unet, x, t, labels.flip(0)), expected)


def test_low_precision_networks_meet_fp32_losses():
    network = ToyDenoiser().to(torch.bfloat16).eval()
    noise = torch.randn(2, 1, 8, 8)
    assert compute_dtype(network) == torch.float32
    assert compute_dtype(network.double()) == torch.float64
    network.to(torch.bfloat16)
    labels = torch.tensor([0, 1])
    assert predict_noise(network, noise, labels, labels).dtype == torch.float32
    x_g = one_step_sample(network, noise, 440, labels, SCHEDULE)
    assert x_g.dtype == torch.float32
    assert not torch.equal(x_g, x_g.to(torch.bfloat16).float())  # not rounded to the bf16 grid


def test_autocast_is_around_the_network_only():
    seen = {}
    network = ToyDenoiser().eval()
    network.conv_out.register_forward_hook(lambda m, i, o: seen.update(dtype=o.dtype))
    predict = with_autocast(predict_noise, torch.device("cpu"))
    noise, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    with torch.no_grad():
        one_step_sample(network, noise, 440, labels, SCHEDULE, predict=predict)
    # A pass without a gradient must not leave cast weights behind for one that needs it.
    x_g = one_step_sample(network, noise, 440, labels, SCHEDULE, predict=predict)
    assert seen["dtype"] == torch.bfloat16
    assert x_g.dtype == torch.float32
    x_g.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


class WrongShape(torch.nn.Module):
    def forward(self, x, t, condition):
        return torch.cat([x, x], 1)


class NoTensor(torch.nn.Module):
    def forward(self, x, t, condition):
        return "nothing"


@pytest.mark.parametrize(
    ("network", "found"), [(WrongShape(), r"\(2, 2, 4, 4\)"), (NoTensor(), "str")]
)
def test_an_answer_that_is_not_noise_is_refused(network, found):
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([1, 2])
    with pytest.raises(PeckerError, match=rf"{type(network).__name__} must predict .*{found}"):
        predict_noise(network, x, t, t)
