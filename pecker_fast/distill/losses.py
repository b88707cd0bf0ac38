"""The two losses of score forgetting distillation, and the one-step generator.

phi is the teacher, psi the pseudo-score network, theta the generator. With x_t = a x_g + b e:

    G(n, c)   = (b n - b eps_theta(b n, t_init, c)) / a                  at t_init
    L_psi     = || e - eps_psi(x_t, t, c) ||^2
    p, s      = D_phi(x_t, t, c_phi), D_psi(x_t, t, c_psi)               denoised images
    ell       = 1/omega  sum (p - s) [(p - x_g) - alpha (p - s)]
              = 1/omega [(1 - alpha) ||p - s||^2 + <p - s, s - x_g>]
    omega     = max(mean |p - x_g|, 1e-5)                                no gradient
    one_step  = || G(n, c) - G_0(n, c_phi) ||^2                          G_0: G at the run's start
    every     = || eps_theta(x_t, t, c) - eps_phi(x_t, t, c_phi) ||^2    any t

Of a rectified flow L_psi and every are taken of the velocity: divided by a^2.

The last two are not in SFD. Sums run over C, H, W. Every function returns one loss per sample: the
remain and the forget term share one batch, and a weight per sample (`term_weights`) makes the two
out of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pecker_fast.distill.networks import NoisePredictor, predict_noise
from pecker_fast.distill.schedule import NoiseSchedule

__all__ = [
    "OMEGA_FLOOR",
    "distillation_loss",
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
    return schedule.weighted((noise - predicted).square().flatten(1).sum(1), t)


def distillation_loss(
    p: Tensor, s: Tensor, r: Tensor, x_g: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss ell per sample from the denoised images, and its upstream gradients.

        ell = [(1 - alpha) ||p - s||^2 + <p - s, r - x_g>] / omega
        g_p = [2 (1 - alpha) (p - s) + (r - x_g)] / omega          g_s = -g_p
        g_r = (p - s) / omega                                      g_x = -g_r

    in closed form, omega held constant. g_x is the direct path only; the one through x_t, p, s and
    r is autograd's. Where r is s, its gradient is g_s + g_r.

    Args:
        p: (N, C, H, W) the teacher's denoised images.
        s: (N, C, H, W) the pseudo-score network's.
        r: (N, C, H, W) the pseudo-score network's in the residual, where that has guidance of its
            own; else s.
        x_g: (N, C, H, W) the generator's images.
        alpha: Weight of the score difference; 1.2 for CIFAR-10 and STL-10.

    Returns:
        (N,) losses, and g_p and g_r, (N, C, H, W) each.
    """
    mean = (p - x_g).abs().flatten(1).mean(1).clamp_min(OMEGA_FLOOR)
    omega = mean.view((-1,) + (1,) * (p.dim() - 1))
    difference, residual = p - s, r - x_g
    losses = (difference * (residual + (1 - alpha) * difference) / omega).flatten(1).sum(1)
    difference, residual = difference / omega, residual / omega
    return losses, 2 * (1 - alpha) * difference + residual, difference


def term_weights(
    lambda_remain: float, lambda_forget: float, batch_size: int, like: Tensor
) -> Tensor:
    """Per-sample weights that turn 2B losses into lam_r mean(remain) + lam_f mean(forget).

    Returns:
        (2B,) in the dtype and on the device of `like`: B times lam_r / B, then B times lam_f / B.
    """
    # Filled on the device: a tensor made of host numbers would wait for it, and fail in a capture.
    terms = (lambda_remain, lambda_forget)
    return torch.cat([like.new_full((batch_size,), term / batch_size) for term in terms])
