"""Stable Diffusion XL: a U-Net that is told two CLIP encoders' texts, a pooled one, and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.files import read_json
from pecker_fast.models.architectures.base import LENGTH, Architecture

__all__ = ["StableDiffusionXL"]

_SIZES = 6  # original height and width, where it was cropped, height and width to be drawn


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

    def no_condition(self, config: Any) -> Tensor:
        """A text, a pooled one and sizes."""
        width = config.cross_attention_dim
        return torch.zeros(1, LENGTH * width + _pooled_width(config) + _SIZES)

    def prepare(self, pipeline: Any, root: Path, config: Any) -> None:
        """Sizes in pixels, and whether the network is told zeros of the empty prompt."""
        zeros = bool(read_json(root / "model_index.json").get("force_zeros_for_empty_prompt", True))
        levels = read_json(root / "vae" / "config.json")["block_out_channels"]
        _, *sides = self.sample_shape(config)
        size = [side * 2 ** (len(levels) - 1) for side in sides]
        pipeline.register_to_config(
            force_zeros_for_empty_prompt=zeros, told_sizes=(*size, 0, 0, *size)
        )

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts, the pooled ones and sizes; "" stands in the place of a negative prompt."""
        texts, _, pooled, _ = pipeline.encode_prompt(prompts, None, device, 1, False)
        if pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=device)
            texts = texts.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        sizes = torch.tensor(pipeline.config.told_sizes, device=device)
        return texts, pooled, sizes.expand(len(prompts), -1)

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
