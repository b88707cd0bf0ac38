"""SANA: a transformer with linear attention that is told Gemma's text and its padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pecker_fast.files import read_json, shown
from pecker_fast.models.architectures.base import Architecture
from pecker_fast.models.schemas import (
    Config,
    Count,
    Factor,
    FlowScheduleConfig,
    Share,
    Side,
    Small,
    SquareTransformerConfig,
)
from pecker_fast.models.texts import unmasked
from pecker_fast.runs.reading import checked

__all__ = ["Sana"]

_LONGEST = 300  # tokens that the network is told, as by the pipeline unless told
_FLOW = "FlowMatchEulerDiscreteScheduler"


class SanaTransformerConfig(SquareTransformerConfig):
    """config.json of diffusers' `SanaTransformer2DModel`."""

    in_channels: Count = 32
    out_channels: Count | None = 32
    num_cross_attention_heads: Count | None = 20
    cross_attention_head_dim: Count | None = 112
    cross_attention_dim: Count | None = 2240
    caption_channels: Count = 2304
    mlp_ratio: Factor = 2.5
    dropout: Share = 0.0
    sample_size: Side = 32
    patch_size: Side = 1
    norm_eps: Small = 1e-6
    guidance_embeds: Literal[False] = False  # SANA-Sprint's
    timestep_scale: Factor = 1.0


class _SolverConfig(Config):
    """scheduler_config.json as SANA comes with it: of a solver that is set to a flow."""

    class_name: str = Field(alias="_class_name")
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)]
    prediction_type: Literal["flow_prediction"]
    use_flow_sigmas: Literal[True]
    flow_shift: Factor = 1.0
    use_dynamic_shifting: Literal[False] = False

    @field_validator("class_name")
    @classmethod
    def _is_the_solver(cls, name: str) -> str:
        if name != "DPMSolverMultistepScheduler":
            raise ValueError(
                f"a {shown(name)} is not SANA's (SANA-Sprint is not supported); expected "
                f"DPMSolverMultistepScheduler or {_FLOW}"
            )
        return name


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
    schema: ClassVar = SanaTransformerConfig
    schedule: ClassVar = FlowScheduleConfig

    def read_schedule(self, file: Path) -> dict[str, Any]:
        """The flow, whichever scheduler steps along it."""
        content = read_json(file)
        if isinstance(content, dict) and content.get("_class_name") == _FLOW:
            return super().read_schedule(file)
        solver = checked(_SolverConfig, content, file)
        steps, shift = solver.num_train_timesteps, solver.flow_shift
        return {"_class_name": _FLOW, "num_train_timesteps": steps, "shift": shift}

    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """The hidden states."""
        return {"caption_channels": encoders["text_encoder"].hidden_size}

    def instruction(self) -> str:
        """What diffusers tells Gemma, which another version may say otherwise."""
        return "\n".join(_instruction())

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
