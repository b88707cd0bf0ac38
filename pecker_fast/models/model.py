"""The one interface of what can be asked to forget: a class model, or a text-to-image pipeline.

What draws, trains or judges takes a `Model` and asks no further: a class is told as its label, a
prompt as a row of embeddings, and both are a `condition`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Asked", "Model", "pixels_of", "predict"]

Asked = Sequence[str | int | None]
"""Classes by name or index, or prompts; None is no class, and the empty prompt."""


class Model(Protocol):
    """A diffusion model with all that is needed to use it."""

    @property
    def network(self) -> Any:
        """What denoises; others of the same architecture are drawn from as well."""

    @property
    def schedule(self) -> Mapping[str, Any]:
        """Configuration of the noise schedule that the network was trained with."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises."""

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", "sample" or "flow_prediction"."""

    @property
    def card(self) -> Mapping[str, Any]:
        """What pecker_fast.json says beside the model: `kind`, `t_init`, measured figures."""

    @property
    def tokens(self) -> int:
        """Tokens that the network makes of an image; the steps of a flow may depend on it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C', H', W') of an image."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, by label; none where prompts are told."""

    @property
    def architecture(self) -> Any:
        """What is known of networks of this kind: how to call them."""

    @property
    def vae(self) -> Any:
        """The autoencoder whose latent images the network denoises; None: pixels."""

    @property
    def has_guidance(self) -> bool:
        """Whether guidance is built into the network, which wants none by a second condition."""

    def scale(self, guidance: float) -> float:
        """Return kappa of the classifier-free kind, 1 for none, of guidance as it is asked for."""

    def condition(self, asked: Asked, device: torch.device | None = None) -> Tensor:
        """Return (N, ...) what the network is told: labels, or rows of embeddings.

        Args:
            asked: what to draw, N classes or N prompts.
            device: where prompts are encoded. None: where the text encoder is.

        Raises:
            PeckerError: no such class, or a prompt that cannot be encoded.
        """

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return what `network` itself predicts, (N, C, H, W) in the dtype of `x_t`.

        Args:
            network: of this model's architecture, on the tensors' device.
            x_t: (N, C, H, W) noisy samples; given to the network in its own dtype.
            t: (N,) how noisy they are, as the scheduler counts it: time steps, 1000 sigma of flows.
            condition: of `condition`.
        """

    def images(self, samples: Tensor) -> Tensor:
        """Return (N, C', H', W') float images in [-1, 1] of what the network denoised."""

    def decode(self, samples: Tensor) -> Tensor:
        """Return `images` as the pixels of their PNGs, (N, C', H', W') uint8 on the CPU."""

    def save(
        self, folder: Path, network: nn.Module | None = None, card: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model, around `network` and with `card` where these are given.

        The folder is written whole or not at all, in the place of one that is there.
        """


def predict(call: Any, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Call a network in its own dtype; see `Model.predict`."""
    dtype = next(network.parameters(), x_t).dtype
    told = condition.to(dtype) if condition.is_floating_point() else condition
    predicted: Tensor = call(network, x_t.to(dtype), t, told)
    return predicted.to(x_t.dtype)


def pixels_of(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to 8 bits a channel, on the CPU."""
    return ((images.clamp(-1.0, 1.0) + 1) * 127.5).round().to(torch.uint8).cpu()
