"""Stable Diffusion 3 and 3.5: a transformer that is told texts of two CLIP encoders and of T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from pecker_fast.models.architectures.base import Architecture, check_widths
from pecker_fast.models.schemas import Count, FlowScheduleConfig, SquareTransformerConfig
from pecker_fast.models.texts import Texts, padded

__all__ = ["StableDiffusion3"]

_LONGEST = 256  # tokens of T5, as the pipeline takes unless told


class SD3TransformerConfig(SquareTransformerConfig):
    """config.json of diffusers' `SD3Transformer2DModel`."""

    joint_attention_dim: Count = 4096
    caption_projection_dim: Count = 1152
    pooled_projection_dim: Count = 2048
    pos_embed_max_size: Count = 96
    dual_attention_layers: Annotated[list[NonNegativeInt], Field(max_length=256)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _can_be_drawn(self) -> SD3TransformerConfig:
        if (side := self.sample_size // self.patch_size) > self.pos_embed_max_size:
            raise ValueError(
                f"'pos_embed_max_size' {self.pos_embed_max_size} is less than the {side} patches "
                f"of 'sample_size' {self.sample_size}"
            )
        if self.out_channels not in (None, self.in_channels):
            raise ValueError(
                f"the network takes {self.in_channels} channels and predicts {self.out_channels}; "
                "expected as many"
            )
        return self


class StableDiffusion3(Architecture):
    """Conditions are (N, L * D + P): the texts, CLIP's before T5's, and the pooled ones."""

    name: ClassVar = "Stable Diffusion 3 and 3.5"
    denoiser: ClassVar = "transformer"
    parts: ClassVar = {
        "transformer": "SD3Transformer2DModel",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "vae": "AutoencoderKL",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5Tokenizer",
    }
    optional: ClassVar = frozenset({"text_encoder_3", "tokenizer_3"})
    schema: ClassVar = SD3TransformerConfig
    schedule: ClassVar = FlowScheduleConfig

    def load_texts(self, root: Path, config: Any) -> Texts:
        """Three tokenizers and their encoders."""
        clips = [self.encoder(root, part) for part in ("text_encoder", "text_encoder_2")]
        given = {"pooled_projection_dim": sum(clip.config.projection_dim for clip in clips)}
        tokenizers = [
            self.tokenizer(root, part, clip)
            for part, clip in zip(("tokenizer", "tokenizer_2"), clips, strict=True)
        ]
        encoders = list(clips)
        if (root / "text_encoder_3").is_dir():
            encoders.append(self.encoder(root, "text_encoder_3"))
            given["joint_attention_dim"] = encoders[-1].config.d_model
            tokenizers.append(self.tokenizer(root, "tokenizer_3", encoders[-1], _LONGEST))
        check_widths(root / self.denoiser, dict(config), given)
        return _ThreeTexts(tokenizers, encoders, config.joint_attention_dim)

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `StableDiffusion3Pipeline`."""
        config: Any = network.config
        pooled = config.pooled_projection_dim
        texts = condition[:, :-pooled].reshape(len(x_t), -1, config.joint_attention_dim)
        output: Tensor = network(
            x_t,
            encoder_hidden_states=texts,
            pooled_projections=condition[:, -pooled:],
            timestep=time,
        ).sample
        return output


class _ThreeTexts(Texts):
    """CLIP's hidden states before the last side by side, padded to T5's width, then T5's."""

    def __init__(
        self, tokenizers: Sequence[Any], encoders: Sequence[nn.Module], width: int
    ) -> None:
        """Keep them; without T5 zeros of that width stand in its place."""
        super().__init__(tokenizers, encoders)
        self._width = width

    def _embed(self, prompts: list[str], place: torch.device) -> Tensor:
        tokens = [padded(each, prompts, place).input_ids for each in self.tokenizers]
        outputs = [
            encoder(part, output_hidden_states=True)
            for encoder, part in zip(self.encoders[:2], tokens[:2], strict=True)
        ]
        clip = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        clip = F.pad(clip, (0, self._width - clip.shape[-1]))
        t5 = clip.new_zeros(len(prompts), _LONGEST, self._width)
        if len(self.encoders) > 2:
            t5 = self.encoders[2](tokens[2])[0]
        texts = torch.cat([clip, t5], 1).flatten(1)
        return torch.cat([texts, *(output[0] for output in outputs)], 1)
