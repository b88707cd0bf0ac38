"""Denoising of real images: what pretraining minimises, the remain term of every method.

    || e - eps(x_t, t, c) ||^2

Losses are (N,), per sample, in the dtype of the images. `ask(network, labels)` is what a network
predicts of a batch's noisy images x_t under (N,) int64 labels: (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

__all__ = ["Ask", "denoising_loss", "guided_denoising_loss"]

Ask: TypeAlias = Callable[[nn.Module, Tensor], Tensor]


def denoising_loss(noise: Tensor, predicted: Tensor) -> Tensor:
    """The squared error, summed over pixels as published; both (N, C, H, W)."""
    return (noise - predicted).square().flatten(1).sum(1)


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
