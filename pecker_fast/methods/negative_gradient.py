"""NegGrad, gradient ascent: the denoising loss of the class to forget is climbed.

forget term    - || e - eps(x_t, t, c_f) ||^2
"""

from __future__ import annotations

from torch import Tensor

from pecker_fast.methods.denoising import denoising_loss

__all__ = ["negative_gradient_loss"]


def negative_gradient_loss(noise: Tensor, predicted: Tensor) -> Tensor:
    """Minus the denoising loss: to descend it is to ascend. Not bounded from below."""
    return -denoising_loss(noise, predicted)
