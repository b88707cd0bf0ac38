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

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pecker_fast.distill.network_set import NetworkSet, Role
from pecker_fast.distill.networks import Guided, NoisePredictor, predict_noise
from pecker_fast.distill.schedule import NoiseSchedule

__all__ = [
    "OMEGA_FLOOR",
    "Predictions",
    "distillation_loss",
    "distillation_loss_gradients",
    "every_step_loss",
    "generator_loss",
    "one_step_loss",
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


def one_step_loss(x_g: Tensor, x_start: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """||x_g - x_start||^2 per sample, and its gradient: keeps and redirects the one step.

    Args:
        x_g: (N, C, H, W) the generator's images; their graph is not touched.
        x_start: (N, C, H, W) what it drew of the same noise as the run began, told c_o for c_f.
        weight: (N,) weights of the samples in the sum that is differentiated.

    Returns:
        (N,) losses without their weights, and (N, C, H, W) the gradient of sum(weight * losses)
        with respect to x_g.
    """
    difference = x_g.detach() - x_start
    scale = weight.view((-1,) + (1,) * (x_g.dim() - 1))
    return difference.square().flatten(1).sum(1), 2 * scale * difference


def every_step_loss(
    networks: NetworkSet,
    x_t: Tensor,
    t: Tensor,
    condition: Tensor,
    teacher_condition: Tensor,
    schedule: NoiseSchedule,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """||eps_theta(x_t, t, c) - eps_phi(x_t, t, c_phi)||^2 per sample: redirects many steps.

    Where c is c_f, c_phi is c_o; elsewhere they are the same. SalUn's loss on another label, with
    the teacher's prediction and on the generator's images. Rests with theta's weights in place.

    Args:
        networks: phi and theta.
        x_t: (N, C, H, W) noisy images.
        t: (N,) int64 time steps.
        condition: (N, ...) what theta is told.
        teacher_condition: (N, ...) what phi is told.
        schedule: The noise schedule.
        predict: Adapter that calls the networks.

    Returns:
        (N,) losses in the dtype of `x_t`.
    """
    with torch.no_grad():
        target = predict(networks.use("teacher"), x_t, t, teacher_condition)
    predicted = predict(networks.use("generator"), x_t, t, condition)
    return schedule.weighted((predicted - target).square().flatten(1).sum(1), t)


def generator_loss(
    x_g: Tensor,
    phi: Predictions,
    psi: Predictions,
    schedule: NoiseSchedule,
    weight: Tensor,
    *,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """ell(c_phi, c_psi) per sample, and its gradient with respect to x_g.

    The backward passes through psi and phi run here, in the reverse order of their forward passes
    and each with that network's weights in place; the one through the generator is the caller's:
    `x_g.backward(gradient)`.

    Args:
        x_g: (N, C, H, W) the generator's images; their graph is not touched.
        phi: The teacher's prediction of x_t, told c_phi: c_r in the remain term, c_o in the forget
            term.
        psi: The pseudo-score's of the same x_t, told c_psi: c_r and c_f. One for the difference of
            the scores, and another one for the residual where that has guidance of its own.
        schedule: The noise schedule.
        weight: (N,) weights of the samples in the sum that is differentiated.
        alpha: Weight of the score difference; 1.2 for CIFAR-10 and STL-10.

    Returns:
        (N,) losses without their weights, and (N, C, H, W) the gradient of sum(weight * losses).
    """
    x_g = x_g.detach()
    with torch.no_grad():
        (p,), (s, *other) = phi.denoised(schedule), psi.denoised(schedule)
        r = other[0] if other else s
        losses = distillation_loss(p, s, x_g, alpha, r)
        scale = weight.view((-1,) + (1,) * (x_g.dim() - 1))
        g_p, g_s, g_r, g_x = (scale * g for g in distillation_loss_gradients(p, s, x_g, alpha, r))
        # p = (x_t - b eps_phi) / a, and s likewise: each score passes its gradient on directly and
        # through its network. x_t = a x_g + b e brings the factor a.
        a, b = schedule.coefficients(phi.t, x_g)
        g_phi = [g_p / a]
        g_psi = [g_s / a, g_r / a] if other else [(g_s + g_r) / a]
        del p, s, r, other
    through_psi = psi.backward([-b * g for g in g_psi])
    through_phi = phi.backward([-b * g for g in g_phi])
    return losses, g_x + a * (g_phi[0] + sum(g_psi) + through_psi + through_phi)


class Predictions:
    """What a network predicts of x_t, and its backward pass, which may come later.

    In between another network's weights may be in place: each pass puts the right ones there.

    Attributes:
        t: The time steps.
    """

    def __init__(
        self,
        networks: NetworkSet,
        role: Role,
        predict: Sequence[NoisePredictor],
        x_t: Tensor,
        t: Tensor,
        condition: Tensor,
        recompute: bool = False,
    ) -> None:
        """Call the network once by each of `predict`.

        Args:
            networks: Have the network, whose parameters should not require gradients.
            role: Which one it is.
            predict: How it is called.
            x_t: (N, C, H, W) the noisy images, which require a gradient.
            t: (N,) int64 time steps.
            condition: (N, ...) what it is told.
            recompute: Call it again before the backward pass, so that the graphs of two networks
                do not live at the same time.
        """
        self._networks, self._role, self._predict = networks, role, predict
        self._x_t, self.t, self._condition = x_t, t, condition
        # What is guided apart keeps no activations as it is.
        apart = all(isinstance(each, Guided) and each.apart for each in predict)
        with torch.set_grad_enabled(apart or not recompute):
            self._eps = self._forward()

    def _forward(self) -> list[Tensor]:
        network = self._networks.use(self._role)
        return [predict(network, self._x_t, self.t, self._condition) for predict in self._predict]

    def denoised(self, schedule: NoiseSchedule) -> list[Tensor]:
        """The clean images that each prediction implies."""
        return [schedule.denoised(self._x_t, eps, self.t) for eps in self._eps]

    def backward(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to x_t, from those with respect to the predictions. Once."""
        eps, self._eps = self._eps, []
        if not eps[0].requires_grad:
            with torch.enable_grad():
                eps = self._forward()
        self._networks.use(self._role)
        (through,) = torch.autograd.grad(eps, self._x_t, gradients)
        return through


def distillation_loss(
    p: Tensor, s: Tensor, x_g: Tensor, alpha: float, r: Tensor | None = None
) -> Tensor:
    """The loss ell per sample from the denoised images.

    Args:
        p: (N, C, H, W) the teacher's denoised images.
        s: (N, C, H, W) the pseudo-score network's.
        x_g: (N, C, H, W) the generator's images.
        alpha: Weight of the score difference.
        r: (N, C, H, W) the pseudo-score network's, where the residual r - x_g is made with another
            guidance than the difference p - s. None: s.

    Returns:
        (N,) losses, (1 - alpha) ||p - s||^2 + <p - s, r - x_g>, over omega.
    """
    difference = p - s
    terms = difference * (((s if r is None else r) - x_g) + (1 - alpha) * difference)
    return (terms / _omega(p, x_g)).flatten(1).sum(1)


def distillation_loss_gradients(
    p: Tensor, s: Tensor, x_g: Tensor, alpha: float, r: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The upstream gradients of ell in closed form, omega held constant.

        g_p = [2 (1 - alpha) (p - s) + (r - x_g)] / omega          g_s = -g_p
        g_r = (p - s) / omega                                      g_x = -g_r

    g_x is the direct path only; the one through x_t, p, s and r is autograd's. Where r is s, its
    gradient is g_s + g_r.

    Args:
        p: (N, C, H, W) the teacher's denoised images.
        s: (N, C, H, W) the pseudo-score network's.
        x_g: (N, C, H, W) the generator's images.
        alpha: Weight of the score difference.
        r: As in `distillation_loss`.

    Returns:
        (g_p, g_s, g_r, g_x), each (N, C, H, W).
    """
    omega = _omega(p, x_g)
    difference = (p - s) / omega
    residual = ((s if r is None else r) - x_g) / omega
    g_p = 2 * (1 - alpha) * difference + residual
    return g_p, -g_p, difference, -difference


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


def _omega(p: Tensor, x_g: Tensor) -> Tensor:
    """The normaliser of a sample, shaped (N, 1, 1, 1)."""
    mean = (p - x_g).abs().flatten(1).mean(1).clamp_min(OMEGA_FLOOR)
    return mean.view((-1,) + (1,) * (p.dim() - 1))
