"""Stable Diffusion 1.x and 2.x: a U-Net that is told the last hidden states of one CLIP encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from pecker_fast.models.architectures.base import Architecture, check_widths
from pecker_fast.models.schemas import TextUNetConfig
from pecker_fast.models.texts import ClipTexts, Texts

__all__ = ["StableDiffusion"]


class StableDiffusion(Architecture):
    """Conditions are (N, L, D), D the width of the text encoder."""

    name: ClassVar = "Stable Diffusion 1.x and 2.x"
    parts: ClassVar = {
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "vae": "AutoencoderKL",
        "tokenizer": "CLIPTokenizer",
    }
    schema: ClassVar = TextUNetConfig

    def is_network(self, config: Mapping[str, Any]) -> bool:
        """Whether it is told nothing else."""
        return super().is_network(config) and config.get("addition_embed_type") is None

    def load_texts(self, root: Path, config: Any) -> Texts:
        """One tokenizer and its encoder."""
        encoder = self.encoder(root, "text_encoder")
        given = {"cross_attention_dim": encoder.config.hidden_size}
        check_widths(root / self.denoiser, dict(config), given)
        return ClipTexts([self.tokenizer(root, "tokenizer", encoder)], [encoder])

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `StableDiffusionPipeline`."""
        output: Tensor = network(x_t, time, encoder_hidden_states=condition).sample
        return output
