"""SANA: a transformer with linear attention that is told Gemma's text and its padding."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pecker_fast.files import read_json, shown
from pecker_fast.models.architectures.base import Architecture, check_widths
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
from pecker_fast.models.texts import Texts, masked, padded, unmasked
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

    def load_texts(self, root: Path, config: Any) -> Texts:
        """Gemma's tokenizer and encoder."""
        encoder = self.encoder(root, "text_encoder")
        given = {"caption_channels": encoder.config.hidden_size}
        check_widths(root / self.denoiser, dict(config), given)
        # One of the 300 is the instruction's last.
        tokenizer = self.tokenizer(root, "tokenizer", encoder, _LONGEST - 1)
        return _Instructed([tokenizer], [encoder])

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


class _Instructed(Texts):
    """The last hidden states, behind diffusers' instruction to Gemma unless the prompt is ""."""

    def tokens(self, prompts: Sequence[str]) -> list[Any]:
        """Those of the instruction too, which another diffusers may have another of."""
        return [*super().tokens(prompts), self.tokenizers[0].encode(_instruction())]

    def _embed(self, prompts: list[str], place: torch.device) -> Tensor:
        rows: dict[str, Tensor] = {}
        for instruction in ("", _instruction()):
            own = [prompt for prompt in prompts if (prompt == "") == (instruction == "")]
            if own:
                rows |= zip(own, self._told(instruction, own, place), strict=True)
        return torch.stack([rows[prompt] for prompt in prompts])

    def _told(self, instruction: str, prompts: list[str], place: torch.device) -> Tensor:
        (tokenizer,), (encoder,) = self.tokenizers, self.encoders
        more = len(tokenizer.encode(instruction)) - 2 if instruction else 0
        whole = [instruction + prompt.lower().strip() for prompt in prompts]
        tokens = padded(tokenizer, whole, place, _LONGEST + more)
        texts = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        kept = [0, *range(1 - _LONGEST, 0)]  # of the instruction its first token and its last
        return masked(texts[:, kept], tokens.attention_mask[:, kept])


def _instruction() -> str:
    from diffusers import SanaPipeline

    options = inspect.signature(SanaPipeline.__call__).parameters
    return "\n".join(options["complex_human_instruction"].default)
