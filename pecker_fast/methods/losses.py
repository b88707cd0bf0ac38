"""The losses of the methods that are trained on real images; (N,), in the dtype of the images.

`ask(network, labels)` is what a network predicts of a batch's noisy images x_t under (N,) int64
labels: (N, C, H, W). eps_0 is the original network, e the noise in x_t. The forget terms:

    random_label       mean_CHW ( eps(x_t, t, c_f) - stopgrad eps(x_t, t, c') )^2
    negative_gradient  - || e - eps(x_t, t, c_f) ||^2
    esd                mean_CHW ( eps(x_t, t, c_f) - eps_0(no class)
                                  + eta (eps_0(c_f) - eps_0(no class)) )^2

The remain term of every method is `denoising_loss`, which pretraining minimises. It is a sum over
pixels and the others a mean, as published: SalUn's alpha, `lambda_remain`, weighs one against the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Ask", "denoising_loss", "esd_loss", "guided_denoising_loss", "random_label_loss"]

Ask: TypeAlias = Callable[[nn.Module, Tensor], Tensor]


def denoising_loss(noise: Tensor, predicted: Tensor) -> Tensor:
    """Squared error of (N, C, H, W) predicted noise, summed over pixels."""
    return (noise - predicted).square().flatten(1).sum(1)


def guided_denoising_loss(
    ask: Ask, network: nn.Module, noise: Tensor, labels: Tensor, no_class: int | None
) -> Tensor:
    """|| e - (3 eps(x_t, t, c) - 2 eps(x_t, t, no class)) ||^2: SalUn's saliency loss.

    Without a label for no class it is plain denoising.
    """
    predicted = ask(network, labels)
    if no_class is not None:
        predicted = 3 * predicted - 2 * ask(network, torch.full_like(labels, no_class))
    return denoising_loss(noise, predicted)


def random_label_loss(ask: Ask, network: nn.Module, forget: Tensor, imitated: Tensor) -> Tensor:
    """SalUn's: pull the prediction under the class to forget to the one under another class.

    The prediction that is imitated is the network's own, at its present weights and in its present
    mode; it has no gradient.

    Args:
        ask: See above.
        network: The network that forgets.
        forget: (N,) int64 labels of the class to forget.
        imitated: (N,) int64 labels for the target: the class in its place.
    """
    with torch.no_grad():
        target = ask(network, imitated)
    return (ask(network, forget) - target).square().flatten(1).mean(1)


def esd_loss(
    ask: Ask, network: nn.Module, original: nn.Module, forget: Tensor, no_class: int, eta: float
) -> Tensor:
    """Pull the prediction under the class to what guidance away from it gives in the original.

    Args:
        ask: See above.
        network: The network that forgets.
        original: The network before; no gradient goes through it.
        forget: (N,) int64 labels of the class to forget.
        no_class: The label that means no class.
        eta: Scale of the guidance away.
    """
    with torch.no_grad():
        without = ask(original, torch.full_like(forget, no_class))
        target = without - eta * (ask(original, forget) - without)
    return (ask(network, forget) - target).square().flatten(1).mean(1)
