"""SalUn, and RL without a mask: the class to forget is shown under another class's label.

    forget term    mean_CHW ( eps(x_t, t, c_f) - stopgrad eps(x_t, t, c') )^2

A mean over pixels, as published: alpha, `lambda_remain`, weighs it against the remain term's sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pecker_fast.methods.denoising import Ask

__all__ = ["random_label_loss"]


def random_label_loss(ask: Ask, network: nn.Module, forget: Tensor, imitated: Tensor) -> Tensor:
    """What is predicted under the class to forget is drawn to what is predicted under another.

    The prediction that is imitated is the network's own, at its present weights and in its present
    mode; it has no gradient.

    Args:
        ask: As in `denoising`.
        network: The network that forgets.
        forget: (N,) int64 what it is told: the class to forget.
        imitated: (N,) int64 what it is told for the target: the class in its place.

    Returns:
        (N,) losses.
    """
    with torch.no_grad():
        target = ask(network, imitated)
    return (ask(network, forget) - target).square().flatten(1).mean(1)
