"""FLUX.1: a transformer of tokens that is told T5's text, CLIP's pooled one, and guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pecker_fast.models.architectures.base import LENGTH, Architecture

__all__ = ["Flux"]

_GUIDANCE = 3.5  # what a network with guidance built in is told, as by the pipeline unless told
_SIDE = 128  # of latent images; the network's configuration does not say


class Flux(Architecture):
    """Conditions are (N, L * D + P): the texts and the pooled one."""

    name: ClassVar = "FLUX.1"
    denoiser: ClassVar = "transformer"
    parts: ClassVar = {
        "transformer": "FluxTransformer2DModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "vae": "AutoencoderKL",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
    }
    pipeline: ClassVar = "FluxPipeline"
    longest: ClassVar = {"tokenizer_2": 512}  # as the pipeline takes unless told
    flow: ClassVar = True

    def has_guidance(self, config: Any) -> bool:
        """FLUX.1-dev's is told its scale."""
        return bool(config.guidance_embeds)

    def sample_shape(self, config: Any) -> tuple[int, int, int]:
        """Latent images before they are packed: a quarter of the channels at twice the side."""
        return config.in_channels // 4, _SIDE, _SIDE

    def tokens(self, shape: tuple[int, int, int], config: Any) -> int:
        """A token is 2x2 latents."""
        return shape[1] // 2 * (shape[2] // 2)

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """T5's hidden states, and CLIP's pooled text."""
        clip, t5 = encoders["text_encoder"], encoders["text_encoder_2"]
        return {"joint_attention_dim": t5.d_model, "pooled_projection_dim": clip.hidden_size}

    def no_condition(self, config: Any) -> Tensor:
        """A text and a pooled one."""
        return torch.zeros(1, LENGTH * config.joint_attention_dim + config.pooled_projection_dim)

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts and the pooled ones."""
        longest = pipeline.tokenizer_2.model_max_length
        texts, pooled, _ = pipeline.encode_prompt(
            prompts, None, device, max_sequence_length=longest
        )
        return texts, pooled

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `FluxPipeline`, whose network is told sigma and not 1000 sigma."""
        config: Any = network.config
        pooled = config.pooled_projection_dim
        texts = condition[:, :-pooled].reshape(len(x_t), -1, config.joint_attention_dim)
        height, width = (side // 2 for side in x_t.shape[2:])
        rows, columns = (
            torch.arange(count, device=x_t.device, dtype=x_t.dtype) for count in (height, width)
        )
        grid = torch.zeros(height, width, 3, device=x_t.device, dtype=x_t.dtype)
        grid[..., 1] += rows[:, None]
        grid[..., 2] += columns
        guidance = torch.full_like(time, _GUIDANCE) if config.guidance_embeds else None
        output: Tensor = network(
            F.pixel_unshuffle(x_t, 2).flatten(2).mT,
            encoder_hidden_states=texts,
            pooled_projections=condition[:, -pooled:],
            timestep=time / 1000,
            guidance=guidance,
            img_ids=grid.flatten(0, 1),
            txt_ids=torch.zeros(texts.shape[1], 3, device=x_t.device, dtype=x_t.dtype),
        ).sample
        return F.pixel_shuffle(output.mT.reshape(len(x_t), -1, height, width), 2)
