"""Stable Diffusion XL: a U-Net that is told two CLIP encoders' texts, a pooled one, and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pecker_fast.files import read_json
from pecker_fast.models.architectures.base import Architecture, check_widths
from pecker_fast.models.schemas import AnyTextUNetConfig, AutoencoderConfig, Count, read_config
from pecker_fast.models.texts import Texts, padded

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
    schema: ClassVar = LargeTextUNetConfig

    def is_network(self, config: Mapping[str, Any]) -> bool:
        """Whether it is told more than a text."""
        return super().is_network(config) and config.get("addition_embed_type") is not None

    def load_texts(self, root: Path, config: Any) -> Texts:
        """Two tokenizers and their encoders; the size in pixels is that of the latent images."""
        encoders = [self.encoder(root, part) for part in ("text_encoder", "text_encoder_2")]
        text = sum(encoder.config.hidden_size for encoder in encoders)
        check_widths(
            root / self.denoiser,
            {"cross_attention_dim": config.cross_attention_dim, "pooled": _pooled_width(config)},
            {"cross_attention_dim": text, "pooled": encoders[1].config.projection_dim},
        )
        tokenizers = [
            self.tokenizer(root, name, encoder)
            for name, encoder in zip(("tokenizer", "tokenizer_2"), encoders, strict=True)
        ]
        levels = read_config(root / "vae" / "config.json", AutoencoderConfig)["block_out_channels"]
        _, height, width = self.sample_shape(config)
        scale = 2 ** (len(levels) - 1)
        zeros = bool(read_json(root / "model_index.json").get("force_zeros_for_empty_prompt", True))
        return _TwoClips(tokenizers, encoders, (height * scale, width * scale), zeros)

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


class _TwoClips(Texts):
    """The hidden states before the last of both side by side, the pooled text of the second."""

    def __init__(
        self, tokenizers: Sequence[Any], encoders: Sequence[nn.Module], size: tuple[int, int],
        zeros: bool,
    ) -> None:  # fmt: skip
        """Keep them, the height and width in pixels, and whether "" is all zeros."""
        super().__init__(tokenizers, encoders)
        self._sizes = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
        self._zeros = zeros

    def _embed(self, prompts: list[str], place: torch.device) -> Tensor:
        outputs = [
            encoder(padded(each, prompts, place).input_ids, output_hidden_states=True)
            for each, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        texts = torch.cat([output.hidden_states[-2] for output in outputs], -1).flatten(1)
        told = torch.cat([texts, outputs[1][0]], 1)
        if self._zeros:
            # As the pipeline tells the network where guidance has no negative prompt.
            empty = torch.tensor([prompt == "" for prompt in prompts], device=place)
            told = told.masked_fill(empty[:, None], 0)
        sizes = self._sizes.to(told).expand(len(prompts), -1)
        return torch.cat([told, sizes], 1)
