"""The terms of the methods on real images, per sample.

    remain              || e - eps(x_t, t, c) ||^2                       plain denoising
    random_label        mean_CHW ( eps(x_t, t, c_f) - stopgrad eps(x_t, t, c') )^2
    negative_gradient   - || e - eps(x_t, t, c_f) ||^2
    esd                 mean_CHW ( eps(x_t, t, c_f) - eps_0(no class)
                                   + eta (eps_0(c_f) - eps_0(no class)) )^2

eps_0 is the original network. Means and sums over pixels are as published: SalUn's alpha weighs a
sum (denoising) against a mean (random labels). Every function returns (N,) losses in the dtype of
the images. `ask(network, labels)` is what a network predicts of the batch's noisy images under
(N,) int64 labels: (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "Ask",
    "denoising_loss",
    "esd_loss",
    "guided_denoising_loss",
    "random_label_loss",
]

Ask: TypeAlias = Callable[[nn.Module, Tensor], Tensor]


def denoising_loss(noise: Tensor, predicted: Tensor) -> Tensor:
    """What pretraining minimises. Its negative, which descending ascends, has no lower bound."""
    return (noise - predicted).square().flatten(1).sum(1)


def random_label_loss(ask: Ask, network: nn.Module, forget: Tensor, imitated: Tensor) -> Tensor:
    """What is predicted under the class to forget is drawn to what is predicted under another.

    The prediction that is imitated is the network's own, at its present weights and in its present
    mode; it has no gradient.

    Args:
        ask: See above.
        network: The network that forgets.
        forget: What it is told: the class to forget.
        imitated: What it is told for the target: the class in its place.
    """
    with torch.no_grad():
        target = ask(network, imitated)
    return (ask(network, forget) - target).square().flatten(1).mean(1)


def esd_loss(
    ask: Ask, network: nn.Module, original: nn.Module, forget: Tensor, no_class: Tensor, eta: float
) -> Tensor:
    """What is predicted under the class is drawn to guidance away from it, by the original.

    Args:
        ask: See above.
        network: The network that forgets.
        original: The network before; no gradient goes through it.
        forget: Labels of the class to forget.
        no_class: Labels that mean no class.
        eta: Scale of the guidance away.
    """
    with torch.no_grad():
        without = ask(original, no_class)
        target = without - eta * (ask(original, forget) - without)
    return (ask(network, forget) - target).square().flatten(1).mean(1)


def guided_denoising_loss(
    ask: Ask,
    network: nn.Module,
    noise: Tensor,
    labels: Tensor,
    no_class: Tensor | None,
    guidance: float,
) -> Tensor:
    """|| e - ((1 + w) eps(x_t, t, c) - w eps(x_t, t, no class)) ||^2: SalUn's saliency loss.

    Args:
        ask: See above.
        network: The network whose entries are scored.
        noise: (N, C, H, W) e.
        labels: Of the images.
        no_class: Labels that mean no class; None only where `guidance` is 0.
        guidance: w; 0 is plain denoising, in one pass instead of two.
    """
    predicted = ask(network, labels)
    if guidance != 0 and no_class is not None:
        predicted = (1 + guidance) * predicted - guidance * ask(network, no_class)
    return denoising_loss(noise, predicted)
