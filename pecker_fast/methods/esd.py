"""ESD: where the class was predicted, predict what guidance away from it would give.

    forget term    mean_CHW ( eps(x_t, t, c_f) - eps_0(no class)
                              + eta (eps_0(c_f) - eps_0(no class)) )^2

eps_0 is the original network. There is no image to keep: `lambda_remain` is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pecker_fast.methods.denoising import Ask

__all__ = ["esd_loss"]


def esd_loss(
    ask: Ask, network: nn.Module, original: nn.Module, forget: Tensor, no_class: Tensor, eta: float
) -> Tensor:
    """What is predicted under the class is drawn to guidance away from it, by the original.

    Args:
        ask: As in `denoising`.
        network: The network that forgets.
        original: The network before; no gradient goes through it.
        forget: (N,) int64 labels of the class to forget.
        no_class: (N,) int64 labels that mean no class.
        eta: Scale of the guidance away.

    Returns:
        (N,) losses.
    """
    with torch.no_grad():
        without = ask(original, no_class)
        target = without - eta * (ask(original, forget) - without)
    return (ask(network, forget) - target).square().flatten(1).mean(1)
