"""PixArt-alpha and -Sigma: a transformer that is told T5's text and how much of it is padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.models.architectures.base import Architecture, check_widths
from pecker_fast.models.schemas import Count, Share, Small, SquareTransformerConfig, pipeline_parts
from pecker_fast.models.texts import Texts, masked, padded, unmasked

__all__ = ["PixArt"]

_LONGEST = {"PixArtAlphaPipeline": 120}  # tokens
_LONGEST_OF_OTHERS = 300
_SCALE = 8  # pixels of a latent one, a side; what the network is told of the size is in pixels


class PixArtTransformerConfig(SquareTransformerConfig):
    """config.json of diffusers' `PixArtTransformer2DModel`."""

    in_channels: Count = 4
    out_channels: Count | None = 8
    dropout: Share = 0.0
    norm_num_groups: Count = 32
    cross_attention_dim: Count = 1152
    caption_channels: Count
    norm_eps: Small = 1e-6
    use_additional_conditions: bool | None = None


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
    schema: ClassVar = PixArtTransformerConfig

    def load_texts(self, root: Path, config: Any) -> Texts:
        """T5's tokenizer and encoder."""
        encoder = self.encoder(root, "text_encoder")
        given = {"caption_channels": encoder.config.d_model}
        check_widths(root / self.denoiser, dict(config), given)
        name, _ = pipeline_parts(root / "model_index.json")
        longest = _LONGEST.get(name, _LONGEST_OF_OTHERS)
        tokenizer = self.tokenizer(root, "tokenizer", encoder, longest)
        return _Masked([tokenizer], [encoder])

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


class _Masked(Texts):
    """The last hidden states, and which tokens are no padding."""

    def _embed(self, prompts: list[str], place: torch.device) -> Tensor:
        (tokenizer,), (encoder,) = self.tokenizers, self.encoders
        # As the pipelines do before.
        tokens = padded(tokenizer, [prompt.lower().strip() for prompt in prompts], place)
        texts = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        return masked(texts, tokens.attention_mask)
