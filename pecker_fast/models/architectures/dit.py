"""DiT: a transformer that sees patches of an image and is told a class."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from pecker_fast.models.architectures.class_networks import ClassNetwork
from pecker_fast.models.schemas import Count, Layers, Share, Side, Small, SquareTransformerConfig

__all__ = ["DiT"]


class DiTConfig(SquareTransformerConfig):
    """config.json of diffusers' `DiTTransformer2DModel`."""

    sample_size: Side = 32
    in_channels: Count = 4
    out_channels: Count | None = None
    num_layers: Layers = 28
    attention_head_dim: Count = 72
    num_attention_heads: Count = 16
    dropout: Share = 0.0
    num_embeds_ada_norm: Count = 1000
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_eps: Small = 1e-5


class DiT(ClassNetwork):
    """diffusers' `DiTTransformer2DModel`; the label behind the classes means no class."""

    name: ClassVar = "DiT"
    denoiser: ClassVar = "transformer"
    parts: ClassVar = {"transformer": "DiTTransformer2DModel"}
    schema: ClassVar = DiTConfig

    @property
    def kind(self) -> type[nn.Module]:  # type: ignore[override]
        """Imported where it is asked for: it brings transformers along."""
        from diffusers import DiTTransformer2DModel

        kind: type[nn.Module] = DiTTransformer2DModel
        return kind

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
        output = super().call(network, x_t, time, condition)
        return output if output.shape == x_t.shape else output[:, : x_t.shape[1]]
