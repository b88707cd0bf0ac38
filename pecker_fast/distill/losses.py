"""The two losses of score forgetting distillation, and the one-step generator.

phi is the teacher, psi the pseudo-score network, theta the generator. With x_t = a x_g + b e:

    G(n, c)   = (b n - b eps_theta(b n, t_init, c)) / a                  at t_init
    L_psi     = || e - eps_psi(x_t, t, c) ||^2
    p, s      = D_phi(x_t, t, c_phi), D_psi(x_t, t, c_psi)               denoised images
    ell       = 1/omega  sum (p - s) [(p - x_g) - alpha (p - s)]
    omega     = max(mean |p - x_g|, 1e-5)                                no gradient

Sums run over C, H, W. Every function returns one loss per sample: the remain and the forget term
share one batch, and a weight per sample (`term_weights`) makes the two out of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pecker_fast.distill.networks import NoisePredictor, predict_noise
from pecker_fast.distill.schedule import NoiseSchedule

__all__ = [
    "OMEGA_FLOOR",
    "distillation_loss",
    "distillation_loss_gradients",
    "generator_loss",
    "one_step_sample",
    "pseudo_score_loss",
    "term_weights",
]

OMEGA_FLOOR = 1e-5
"""Smallest normaliser omega, in units of the image range [-1, 1]."""


def one_step_sample(
    network: nn.Module,
    noise: Tensor,
    t_init: int,
    condition: Tensor,
    schedule: NoiseSchedule,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """G(n, c): one call of the network turns noise into images. They are not clamped.

    Args:
        network: The generator theta.
        noise: (N, C, H, W) standard normal, in the dtype that the images shall have.
        t_init: The time step that the generator is told.
        condition: (N,) int64 class labels.
        schedule: The noise schedule.
        predict: Adapter that calls the network.

    Returns:
        (N, C, H, W) images in the dtype of `noise`.
    """
    t = torch.full((len(noise),), t_init, dtype=torch.int64, device=noise.device)
    _, b = schedule.coefficients(t, noise)
    z = b * noise
    return schedule.denoised(z, predict(network, z, t, condition), t)


def pseudo_score_loss(
    network: nn.Module,
    x_g: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor,
    schedule: NoiseSchedule,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """Plain denoising of the generator's samples: ||e - eps(x_t, t, c)||^2 per sample.

    Args:
        network: The network that learns to denoise (psi).
        x_g: (N, C, H, W) images, detached by the caller where they must be.
        noise: (N, C, H, W) e.
        t: (N,) int64 time steps.
        condition: (N,) int64 class labels.
        schedule: The noise schedule.
        predict: Adapter that calls the network.

    Returns:
        (N,) losses in the dtype of `x_g`.
    """
    predicted = predict(network, schedule.add_noise(x_g, noise, t), t, condition)
    return (noise - predicted).square().flatten(1).sum(1)


def generator_loss(
    x_g: Tensor,
    noise: Tensor,
    t: Tensor,
    teacher: nn.Module,
    pseudo_score: nn.Module,
    teacher_condition: Tensor,
    pseudo_score_condition: Tensor,
    schedule: NoiseSchedule,
    *,
    alpha: float,
    predict: NoisePredictor = predict_noise,
    diff_instruct: bool = False,
) -> Tensor:
    """ell(c_phi, c_psi) per sample, with its gradient into x_g.

    Args:
        x_g: (N, C, H, W) the generator's images, with their graph.
        noise: (N, C, H, W) e.
        t: (N,) int64 time steps.
        teacher: phi. Its parameters should not require a gradient.
        pseudo_score: psi. Neither should its.
        teacher_condition: (N,) int64 c_phi: c_r in the remain term, c_o in the forget term.
        pseudo_score_condition: (N,) int64 c_psi: c_r in the remain term, c_f in the forget term.
        schedule: The noise schedule.
        alpha: Weight of the score difference; 1.2 for CIFAR-10 and STL-10.
        predict: Adapter that calls the networks.
        diff_instruct: Block the gradient through p and s. A different, cheaper algorithm.

    Returns:
        (N,) losses in the dtype of `x_g`.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not diff_instruct):
        x_t = schedule.add_noise(x_g, noise, t)
        p = schedule.denoised(x_t, predict(teacher, x_t, t, teacher_condition), t)
        s = schedule.denoised(x_t, predict(pseudo_score, x_t, t, pseudo_score_condition), t)
    return distillation_loss(p, s, x_g, alpha)


def distillation_loss(p: Tensor, s: Tensor, x_g: Tensor, alpha: float) -> Tensor:
    """The loss ell per sample from the two denoised images; its backward is the closed form.

    Args:
        p: (N, C, H, W) the teacher's denoised images.
        s: (N, C, H, W) the pseudo-score network's.
        x_g: (N, C, H, W) the generator's images.
        alpha: Weight of the score difference.

    Returns:
        (N,) losses.
    """
    loss: Tensor = _DistillationLoss.apply(p, s, x_g, alpha)  # type: ignore[no-untyped-call]
    return loss


def distillation_loss_gradients(
    p: Tensor, s: Tensor, x_g: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The upstream gradients of ell in closed form, omega held constant.

        g_p = [2 (1 - alpha) (p - s) + (s - x_g)] / omega
        g_s = [(2 alpha - 1) (p - s) - (s - x_g)] / omega
        g_x = -(p - s) / omega

    g_x is the direct path only; the one through x_t, p and s is autograd's.

    Args:
        p: (N, C, H, W) the teacher's denoised images.
        s: (N, C, H, W) the pseudo-score network's.
        x_g: (N, C, H, W) the generator's images.
        alpha: Weight of the score difference.

    Returns:
        (g_p, g_s, g_x), each (N, C, H, W).
    """
    omega = _omega(p, x_g)
    difference = (p - s) / omega
    residual = (s - x_g) / omega
    return (
        2 * (1 - alpha) * difference + residual,
        (2 * alpha - 1) * difference - residual,
        -difference,
    )


def term_weights(
    lambda_remain: float, lambda_forget: float, batch_size: int, like: Tensor
) -> Tensor:
    """Per-sample weights that turn 2B losses into lam_r mean(remain) + lam_f mean(forget).

    Returns:
        (2B,) in the dtype and on the device of `like`: B times lam_r / B, then B times lam_f / B.
    """
    terms = like.new_tensor([lambda_remain / batch_size, lambda_forget / batch_size])
    return terms.repeat_interleave(batch_size)


def _omega(p: Tensor, x_g: Tensor) -> Tensor:
    """The normaliser of a sample, shaped (N, 1, 1, 1)."""
    mean = (p - x_g).abs().flatten(1).mean(1).clamp_min(OMEGA_FLOOR)
    return mean.view((-1,) + (1,) * (p.dim() - 1))


class _DistillationLoss(torch.autograd.Function):
    """ell with the three closed-form gradients. Saves p, s and x_g and nothing else."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, s: Tensor, x_g: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(p, s, x_g)
        ctx.alpha = alpha
        difference = p - s
        terms = difference * ((p - x_g) - alpha * difference)
        return (terms / _omega(p, x_g)).flatten(1).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, s, x_g = ctx.saved_tensors
        gradients = distillation_loss_gradients(p, s, x_g, ctx.alpha)
        scale = grad.view((-1,) + (1,) * (p.dim() - 1))
        wanted = ctx.needs_input_grad[:3]
        return (
            *(scale * g if need else None for g, need in zip(gradients, wanted, strict=True)),
            None,
        )
