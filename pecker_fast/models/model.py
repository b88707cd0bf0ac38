"""The one interface of what can be asked to forget: a class model, or a text-to-image pipeline.

What draws, trains or judges takes a `Model` and asks no further: a class is told as its label, a
prompt as a row of embeddings, and both are a `condition`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Asked", "Model"]

Asked = Sequence[str | int | None]
"""Classes by name or index, or prompts; None is no class, and the empty prompt."""


class Model:
    """A diffusion model with all that is needed to use it.

    Attributes:
        network: what denoises; others of the same architecture are drawn from as well.
        architecture: what is known of networks of its kind, a `Denoiser`.
        class_names: of the classes, by label; none where prompts are told.
        vae: the autoencoder whose latent images the network denoises; None: pixels.
    """

    network: Any
    architecture: Any
    class_names: tuple[str, ...]
    vae: Any

    @property
    def schedule(self) -> Mapping[str, Any]:
        """Configuration of the noise schedule that the network was trained with."""
        raise NotImplementedError

    @property
    def card(self) -> Mapping[str, Any]:
        """What pecker_fast.json says beside the model: `kind`, `t_init`, measured figures."""
        raise NotImplementedError

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises."""
        shape: tuple[int, int, int] = self.architecture.sample_shape(self.network.config)
        return shape

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises."""
        return self.network_shape

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", "sample" or "flow_prediction"."""
        default = "epsilon" if "beta_start" in self.schedule else "flow_prediction"
        return str(self.schedule.get("prediction_type", default))

    @property
    def tokens(self) -> int:
        """Tokens that the network makes of an image; the steps of a flow may depend on it."""
        return int(self.architecture.tokens(self.shape, self.network.config))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C', H', W') of an image."""
        raise NotImplementedError

    @property
    def has_guidance(self) -> bool:
        """Whether guidance is built into the network, which wants none by a second condition."""
        return bool(self.architecture.has_guidance(self.network.config))

    def scale(self, guidance: float) -> float:
        """Return kappa of the classifier-free kind, 1 for none, of guidance as it is asked for."""
        raise NotImplementedError

    def condition(self, asked: Asked, device: torch.device | None = None) -> Tensor:
        """Return (N, ...) what the network is told: int64 labels, or rows of embeddings on the CPU.

        Args:
            asked: what to draw, N classes or N prompts.
            device: where prompts are encoded. None: where the text encoder is.

        Raises:
            PeckerError: no such class, or a prompt that cannot be encoded.
        """
        raise NotImplementedError

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return what `network` itself predicts, (N, C, H, W) in the dtype of `x_t`.

        Args:
            network: of this model's architecture, on the tensors' device.
            x_t: (N, C, H, W) noisy samples; given to the network in its own dtype.
            t: (N,) how noisy they are, as the scheduler counts it: time steps, 1000 sigma of flows.
            condition: of `condition`.
        """
        dtype = next(network.parameters(), x_t).dtype
        told = condition.to(dtype) if condition.is_floating_point() else condition
        predicted: Tensor = self.architecture.call(network, x_t.to(dtype), t, told)
        return predicted.to(x_t.dtype)

    def images(self, samples: Tensor) -> Tensor:
        """Return (N, C', H', W') float images in [-1, 1] of what the network denoised."""
        raise NotImplementedError

    def decode(self, samples: Tensor) -> Tensor:
        """Return `images` as the pixels of their PNGs, (N, C', H', W') uint8 on the CPU."""
        images = self.images(samples).clamp(-1.0, 1.0)
        return ((images + 1) * 127.5).round().to(torch.uint8).cpu()

    def save(
        self, folder: Path, network: nn.Module | None = None, card: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model whole or not at all, in the place of a folder that is there.

        Args:
            folder: where; not the model's own.
            network: takes the place of the model's. None: its own.
            card: takes the place of the model's. None: its own.
        """
        raise NotImplementedError
