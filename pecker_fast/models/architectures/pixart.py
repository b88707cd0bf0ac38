"""PixArt-alpha and -Sigma: a transformer that is told T5's text and how much of it is padding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.files import read_json
from pecker_fast.models.architectures.base import LENGTH, Architecture, unmasked

__all__ = ["PixArt"]

_LONGEST = 300  # tokens
_LONGEST_OF_ALPHA = 120
_SCALE = 8  # pixels of a latent one, a side; what the network is told of the size is in pixels


class PixArt(Architecture):
    """Conditions are (N, L * (D + 1)): the texts, then 1 for each token that is no padding."""

    name: ClassVar = "PixArt-alpha and -Sigma"
    denoiser: ClassVar = "transformer"
    parts: ClassVar = {
        "transformer": "PixArtTransformer2DModel",
        "text_encoder": "T5EncoderModel",
        "vae": "AutoencoderKL",
        "tokenizer": "T5Tokenizer",
    }
    pipeline: ClassVar = "PixArtAlphaPipeline"
    longest: ClassVar = {"tokenizer": _LONGEST}

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """The hidden states."""
        return {"caption_channels": encoders["text_encoder"].d_model}

    def no_condition(self, config: Any) -> Tensor:
        """A text and its mask."""
        return torch.zeros(1, LENGTH * (config.caption_channels + 1))

    def prepare(self, pipeline: Any, root: Path, config: Any) -> None:
        """Alpha's texts are shorter than Sigma's."""
        if read_json(root / "model_index.json").get("_class_name") == self.pipeline:
            tokenizer = pipeline.tokenizer
            tokenizer.model_max_length = min(tokenizer.model_max_length, _LONGEST_OF_ALPHA)

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts, and which tokens are no padding."""
        texts, mask, _, _ = pipeline.encode_prompt(
            prompts, False, device=device, clean_caption=False,
            max_sequence_length=pipeline.tokenizer.model_max_length,
        )  # fmt: skip
        return texts, mask

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `PixArtAlphaPipeline`; the half of the output that is the variance is left out."""
        config: Any = network.config
        texts, mask = unmasked(condition, config.caption_channels)
        told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if _told_sizes(config):
            count, height, width = len(x_t), x_t.shape[2], x_t.shape[3]
            sides = [x_t.new_full((count, 1), _SCALE * side) for side in (height, width)]
            told = {
                "resolution": torch.cat(sides, 1),
                "aspect_ratio": x_t.new_full((count, 1), height / width),
            }
        output: Tensor = network(
            x_t,
            encoder_hidden_states=texts,
            encoder_attention_mask=mask,
            timestep=time,
            added_cond_kwargs=told,
        ).sample
        return output[:, : x_t.shape[1]]


def _told_sizes(config: Any) -> bool:
    said = config.use_additional_conditions
    return bool(config.sample_size == 128 if said is None else said)
