"""SANA: a transformer with linear attention that is told Gemma's text and its padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.models.architectures.base import LENGTH, Architecture, unmasked

__all__ = ["Sana"]

_LONGEST = 300  # tokens that the network is told, as by the pipeline unless told


class Sana(Architecture):
    """Conditions are (N, L * (D + 1)): the texts, then 1 for each token that is no padding."""

    name: ClassVar = "SANA"
    denoiser: ClassVar = "transformer"
    parts: ClassVar = {
        "transformer": "SanaTransformer2DModel",
        "text_encoder": "Gemma2Model",
        "vae": "AutoencoderDC",
        "tokenizer": "GemmaTokenizer",
    }
    pipeline: ClassVar = "SanaPipeline"
    longest: ClassVar = {"tokenizer": _LONGEST - 1}  # one is the instruction's last
    flow: ClassVar = True

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """The hidden states."""
        return {"caption_channels": encoders["text_encoder"].hidden_size}

    def instruction(self) -> str:
        """What diffusers tells Gemma, which another version may say otherwise."""
        return "\n".join(_instruction())

    def no_condition(self, config: Any) -> Tensor:
        """A text and its mask."""
        return torch.zeros(1, LENGTH * (config.caption_channels + 1))

    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """The texts, and which tokens are no padding; "" goes without the instruction."""
        found: dict[bool, Any] = {}
        for empty in {prompt == "" for prompt in prompts}:
            own = [prompt for prompt in prompts if (prompt == "") == empty]
            texts, mask, _, _ = pipeline.encode_prompt(
                own, False, device=device, clean_caption=False, max_sequence_length=_LONGEST,
                complex_human_instruction=None if empty else _instruction(),
            )  # fmt: skip
            found[empty] = zip(texts, mask, strict=True)
        texts, mask = zip(*(next(found[prompt == ""]) for prompt in prompts), strict=True)
        return torch.stack(texts), torch.stack(mask)

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `SanaPipeline`; the half of the output that is the variance is left out."""
        config: Any = network.config
        texts, mask = unmasked(condition, config.caption_channels)
        output: Tensor = network(
            x_t,
            encoder_hidden_states=texts,
            encoder_attention_mask=mask,
            timestep=time * config.timestep_scale,
        ).sample
        return output[:, : x_t.shape[1]]


def _instruction() -> list[str]:
    from diffusers import SanaPipeline

    options = inspect.signature(SanaPipeline.__call__).parameters
    said: list[str] = options["complex_human_instruction"].default
    return said
