"""How the distillation calls a network. The only file here that knows what a network looks like."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError

__all__ = ["NoisePredictor", "compute_dtype", "predict_noise", "with_autocast"]


class NoisePredictor(Protocol):
    """The adapter between a network and the losses: write one for a network of your own.

    `adapter(network, x_t, t, condition)` returns the predicted noise, shaped like `x_t`
    (N, C, H, W); `t` is (N,) int64 and `condition` (N,) int64 class labels.
    """

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise in `x_t`."""
        ...


def predict_noise(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """The default adapter: `network(x_t, t, condition)`.

    This is how a diffusers `UNet2DModel` takes its class labels; its `.sample` is unwrapped. Any
    module that takes the same three arguments and returns a tensor works as well. The image is
    cast to the network's dtype on the way in and the answer back on the way out, so that a
    low-precision network still meets losses in the images' precision.

    Args:
        network: The module to call.
        x_t: (N, C, H, W) noisy images.
        t: (N,) int64 time steps.
        condition: (N,) int64 class labels.

    Returns:
        (N, C, H, W) predicted noise in the dtype of `x_t`.

    Raises:
        PeckerError: The network answers with something that is not shaped like an image.
    """
    first = next(network.parameters(), x_t)
    output = network(x_t.to(first.dtype), t, condition)
    noise = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(noise, Tensor) or noise.shape != x_t.shape:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(output).__name__
        raise PeckerError(
            f"{type(network).__name__} must predict noise shaped like its input "
            f"{tuple(x_t.shape)}, got {found}; pass your own adapter as `predict`"
        )
    return noise.to(x_t.dtype)


def compute_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of images, noise and losses: float32, or float64 for a float64 network."""
    first = next(network.parameters(), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32


def with_autocast(predict: NoisePredictor, device: torch.device) -> NoisePredictor:
    """`predict` under bf16 autocast, with everything around the network left in fp32."""

    def predict_bf16(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        # One context per call: within one context autocast would hand the weights that it cast
        # under no_grad to a later pass that needs their gradient.
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return predict(network, x_t, t, condition).to(x_t.dtype)

    return predict_bf16
