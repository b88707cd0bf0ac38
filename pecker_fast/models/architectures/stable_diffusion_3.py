"""Stable Diffusion 3 and 3.5: a transformer that is told texts of two CLIP encoders and of T5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.models.architectures.base import LENGTH, Architecture

__all__ = ["StableDiffusion3"]

_LONGEST = 256  # tokens of T5, as the pipeline takes unless told


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
    pipeline: ClassVar = "StableDiffusion3Pipeline"
    longest: ClassVar = {"tokenizer_3": _LONGEST}
    flow: ClassVar = True

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """T5's hidden states, and both pooled texts side by side."""
        clips = (encoders["text_encoder"], encoders["text_encoder_2"])
        found = {"pooled_projection_dim": sum(clip.projection_dim for clip in clips)}
        if t5 := encoders.get("text_encoder_3"):
            found["joint_attention_dim"] = t5.d_model
        return found

    def no_condition(self, config: Any) -> Tensor:
        """A text and a pooled one."""
        return torch.zeros(1, LENGTH * config.joint_attention_dim + config.pooled_projection_dim)

    def prepare(self, pipeline: Any, root: Path, config: Any) -> None:
        """Without T5 the pipeline looks up in the network how wide zeros are."""
        pipeline.transformer = SimpleNamespace(config=config)

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts and the pooled ones."""
        t5 = pipeline.tokenizer_3
        texts, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, device, do_classifier_free_guidance=False,
            max_sequence_length=t5.model_max_length if t5 else _LONGEST,
        )  # fmt: skip
        return texts, pooled

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
