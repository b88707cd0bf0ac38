"""The forget terms of the baselines, per sample. The remain term of all is plain denoising.

    random_label        mean_CHW ( eps(x_t, t, c_f) - stopgrad eps(x_t, t, c') )^2
    negative_gradient   - || e - eps(x_t, t, c_f) ||^2
    esd                 mean_CHW ( eps(x_t, t, c_f) - eps_0(no class)
                                   + eta (eps_0(c_f) - eps_0(no class)) )^2

eps_0 is the original network. Means and sums over pixels are as published: SalUn's alpha weighs a
sum (denoising) against a mean (random labels).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pecker_fast.distill.losses import pseudo_score_loss
from pecker_fast.distill.networks import NoisePredictor, predict_noise
from pecker_fast.distill.schedule import NoiseSchedule

__all__ = [
    "denoising_loss",
    "esd_loss",
    "guided_denoising_loss",
    "negative_gradient_loss",
    "random_label_loss",
]

denoising_loss = pseudo_score_loss
"""|| e - eps(x_t, t, c) ||^2 per sample: what pretraining minimises, on real images."""


def random_label_loss(
    network: nn.Module,
    x_t: Tensor,
    t: Tensor,
    forget: Tensor,
    imitated: Tensor,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """What is predicted under the class to forget is drawn to what is predicted under another.

    The prediction that is imitated is the network's own, at its present weights and in its present
    mode; it has no gradient.

    Args:
        network: The network that forgets.
        x_t: (N, C, H, W) noisy images of the class to forget.
        t: (N,) int64 time steps.
        forget: (N,) int64 what the network is told: the class to forget.
        imitated: (N,) int64 what it is told for the target: the class in its place.
        predict: Adapter that calls the network.

    Returns:
        (N,) losses in the dtype of `x_t`.
    """
    with torch.no_grad():
        target = predict(network, x_t, t, imitated)
    return (predict(network, x_t, t, forget) - target).square().flatten(1).mean(1)


def negative_gradient_loss(
    network: nn.Module,
    images: Tensor,
    noise: Tensor,
    t: Tensor,
    forget: Tensor,
    schedule: NoiseSchedule,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """Minus the denoising loss: to descend it is to ascend. Not bounded from below.

    Args and result as `denoising_loss`.
    """
    return -denoising_loss(network, images, noise, t, forget, schedule, predict=predict)


def esd_loss(
    network: nn.Module,
    original: nn.Module,
    x_t: Tensor,
    t: Tensor,
    forget: Tensor,
    no_class: Tensor,
    eta: float,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """What is predicted under the class is drawn to guidance away from it, by the original.

    Args:
        network: The network that forgets.
        original: The network before; no gradient goes through it.
        x_t: (N, C, H, W) noisy images of the class to forget.
        t: (N,) int64 time steps.
        forget: (N,) int64 labels of the class to forget.
        no_class: (N,) int64 labels that mean no class.
        eta: Scale of the guidance away.
        predict: Adapter that calls the networks.

    Returns:
        (N,) losses in the dtype of `x_t`.
    """
    with torch.no_grad():
        without = predict(original, x_t, t, no_class)
        target = without - eta * (predict(original, x_t, t, forget) - without)
    return (predict(network, x_t, t, forget) - target).square().flatten(1).mean(1)


def guided_denoising_loss(
    network: nn.Module,
    images: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor,
    no_class: Tensor | None,
    guidance: float,
    schedule: NoiseSchedule,
    *,
    predict: NoisePredictor = predict_noise,
) -> Tensor:
    """|| e - ((1 + w) eps(x_t, t, c) - w eps(x_t, t, no class)) ||^2: SalUn's saliency loss.

    Args:
        network: The network whose entries are scored.
        images: (N, C, H, W) what it sees, without noise.
        noise: (N, C, H, W) e.
        t: (N,) int64 time steps.
        labels: (N,) int64.
        no_class: (N,) int64 labels that mean no class; None only where `guidance` is 0.
        guidance: w; 0 is plain denoising, in one pass instead of two.
        schedule: The noise schedule.
        predict: Adapter that calls the network.

    Returns:
        (N,) losses in the dtype of `images`.
    """
    if guidance == 0 or no_class is None:
        return denoising_loss(network, images, noise, t, labels, schedule, predict=predict)
    x_t = schedule.add_noise(images, noise, t)
    with_class = predict(network, x_t, t, labels)
    predicted = (1 + guidance) * with_class - guidance * predict(network, x_t, t, no_class)
    return (noise - predicted).square().flatten(1).sum(1)
