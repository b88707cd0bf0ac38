"""Stable Diffusion XL: a U-Net that is told two CLIP encoders' texts, a pooled one, and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pecker_fast.files import read_json
from pecker_fast.models.architectures.base import Architecture
from pecker_fast.models.schemas import AnyTextUNetConfig, AutoencoderConfig, Count, read_config
from pecker_fast.models.texts import Texts

__all__ = ["StableDiffusionXL"]

_SIZES = 6  # original height and width, where it was cropped, height and width to be drawn


class LargeTextUNetConfig(AnyTextUNetConfig):
    """The same of Stable Diffusion XL, conditioned on a pooled text and on sizes as well."""

    addition_embed_type: Literal["text_time"]
    addition_time_embed_dim: Count
    projection_class_embeddings_input_dim: Count
    cross_attention_dim: Count

    @model_validator(mode="after")
    def _has_a_pooled_text(self) -> LargeTextUNetConfig:
        if self.projection_class_embeddings_input_dim <= 6 * self.addition_time_embed_dim:
            raise ValueError(
                f"'projection_class_embeddings_input_dim' "
                f"{self.projection_class_embeddings_input_dim} has no room for a pooled text "
                f"beside six sizes of 'addition_time_embed_dim' {self.addition_time_embed_dim}"
            )
        return self


class StableDiffusionXL(Architecture):
    """Conditions are (N, L * D + P + 6): the texts, the pooled text, the sizes."""

    name: ClassVar = "Stable Diffusion XL"
    parts: ClassVar = {
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "vae": "AutoencoderKL",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    }
    pipeline: ClassVar = "StableDiffusionXLPipeline"
    schema: ClassVar = LargeTextUNetConfig

    def is_network(self, config: Mapping[str, Any]) -> bool:
        """Whether it is told more than a text."""
        return super().is_network(config) and config.get("addition_embed_type") is not None

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """Both hidden states side by side; the pooled text of the second and the sizes."""
        sizes, pooled = config.addition_time_embed_dim, encoders["text_encoder_2"].projection_dim
        return {
            "cross_attention_dim": sum(each.hidden_size for each in encoders.values()),
            "projection_class_embeddings_input_dim": pooled + _SIZES * sizes,
        }

    def sizes(self, root: Path, config: Any) -> Tensor:
        """(6,) height and width, where it is cropped, height and width, in pixels."""
        levels = read_config(root / "vae" / "config.json", AutoencoderConfig)["block_out_channels"]
        _, *sides = self.sample_shape(config)
        size = [side * 2 ** (len(levels) - 1) for side in sides]
        return torch.tensor([*size, 0, 0, *size], dtype=torch.float32)

    def load_texts(self, root: Path, config: Any) -> Texts:
        """As for any, and whether the pipeline tells the network zeros of the empty prompt."""
        texts = super().load_texts(root, config)
        zeros = bool(read_json(root / "model_index.json").get("force_zeros_for_empty_prompt", True))
        texts.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
        return texts

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts and the pooled ones; "" is what stands in the place of a negative prompt."""
        texts, _, pooled, _ = pipeline.encode_prompt(prompts, None, device, 1, False)
        if pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=device)
            texts = texts.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        return texts, pooled

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `StableDiffusionXLPipeline` for an image of the size that it was trained with."""
        config: Any = network.config
        added = _pooled_width(config) + _SIZES
        texts, added_text = condition[:, :-added], condition[:, -added:-_SIZES]
        output: Tensor = network(
            x_t,
            time,
            encoder_hidden_states=texts.reshape(len(x_t), -1, config.cross_attention_dim),
            added_cond_kwargs={"text_embeds": added_text, "time_ids": condition[:, -_SIZES:]},
        ).sample
        return output


def _pooled_width(config: Any) -> int:
    return int(
        config.projection_class_embeddings_input_dim - _SIZES * config.addition_time_embed_dim
    )
