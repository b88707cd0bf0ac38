"""Stable Diffusion 1.x and 2.x: a U-Net that is told the last hidden states of one CLIP encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.models.architectures.base import LENGTH, Architecture

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
    pipeline: ClassVar = "StableDiffusionPipeline"
    options: ClassVar = {
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False
    }  # fmt: skip

    def no_condition(self, config: Any) -> Tensor:
        """A text."""
        return torch.zeros(1, LENGTH, config.cross_attention_dim)

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """The last hidden states."""
        return {"cross_attention_dim": encoders["text_encoder"].hidden_size}

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts."""
        texts, _ = pipeline.encode_prompt(prompts, device, 1, False)
        return (texts,)

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `StableDiffusionPipeline`."""
        output: Tensor = network(x_t, time, encoder_hidden_states=condition).sample
        return output
