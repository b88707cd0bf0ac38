"""DiT: a transformer that sees patches of an image and is told a class."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from pecker_fast.models.architectures.class_networks import ClassNetwork

__all__ = ["DiT"]


class DiT(ClassNetwork):
    """diffusers' `DiTTransformer2DModel`; the label behind the classes means no class."""

    name: ClassVar = "DiT"
    denoiser: ClassVar = "transformer"
    parts: ClassVar = {"transformer": "DiTTransformer2DModel"}

    def settle(self, network: nn.Module) -> None:
        """Never drop a label; diffusers drops a tenth in train mode, others in each block."""
        from diffusers.models.embeddings import LabelEmbedding

        for part in network.modules():
            if isinstance(part, LabelEmbedding):
                part.dropout_prob = 0.0

    def labels(self, network: Any) -> tuple[int, int | None]:
        """Its classes and no class."""
        classes: int = network.config.num_embeds_ada_norm
        return classes + 1, classes

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `DiTPipeline`; the half of the output that is the variance is left out."""
        return super().call(network, x_t, time, condition)[:, : x_t.shape[1]]
