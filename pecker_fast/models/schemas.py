"""What the JSON files of model and pipeline folders may hold.

Only what is looked at here or would be believed by diffusers and transformers without a check; they
take the rest, and what they refuse is said in their words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    field_validator,
    model_validator,
)

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_json, shown
from pecker_fast.runs.reading import Names, Schema, checked

__all__ = [
    "AnyTextUNetConfig",
    "AutoencoderConfig",
    "ClassDescription",
    "ClassUNetConfig",
    "Config",
    "DDPMUNetConfig",
    "DeepAutoencoderConfig",
    "FlowScheduleConfig",
    "PipelineDescription",
    "ScheduleConfig",
    "SquareTransformerConfig",
    "TextUNetConfig",
    "TransformerConfig",
    "pipeline_parts",
    "read_config",
]


Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 20)]
Layers: TypeAlias = Annotated[int, Field(ge=1, le=256)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=1 << 14)]
Widths: TypeAlias = Annotated[list[Count], Field(min_length=1, max_length=16)]
Blocks: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, le=256)]], Field(max_length=16)]
Word: TypeAlias = Annotated[str, Field(max_length=100)]
Words: TypeAlias = Annotated[list[Word], Field(min_length=1, max_length=16)]
Bit: TypeAlias = Annotated[int, Field(ge=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Small: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Factor: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
Beta: TypeAlias = Annotated[float, Field(gt=0, lt=1)]


# ---- networks


class Config(Schema):
    """Of diffusers or transformers, who write more entries than are looked at."""

    model_config = ConfigDict(extra="ignore")


class _UNetConfig(Config):
    sample_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    in_channels: Count = 3
    out_channels: Count = 3
    block_out_channels: Widths
    down_block_types: Words
    up_block_types: Words
    norm_num_groups: Count = 32
    center_input_sample: bool = False
    norm_eps: Small = 1e-5
    dropout: Share = 0.0
    downsample_padding: Bit = 1
    freq_shift: Bit = 0
    mid_block_scale_factor: Factor = 1
    class_embed_type: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> _UNetConfig:
        if self.sample_size is None:
            raise ValueError(
                "'sample_size' is not given, and nothing else says how large the images are; write "
                "the height and width that the network was trained with, such as 32"
            )
        halvings = 2 ** (len(self.block_out_channels) - 1)
        sides = [self.sample_size] if isinstance(self.sample_size, int) else self.sample_size
        if any(side % halvings for side in sides):
            raise ValueError(
                f"'sample_size' {self.sample_size} cannot be halved "
                f"{len(self.block_out_channels) - 1} times, which as many levels need"
            )
        if self.in_channels != self.out_channels:
            raise ValueError(self._other_channels())
        if self.class_embed_type is not None:
            raise ValueError(
                f"'class_embed_type' {shown(self.class_embed_type)} is not supported; expected "
                "null, where classes are the rows of a table"
            )
        return self

    def _other_channels(self) -> str:
        two = f"takes {self.in_channels} channels and predicts {self.out_channels}"
        if self.out_channels == 2 * self.in_channels:
            return f"the network {two}: the variance too, which is not supported"
        if self.in_channels > self.out_channels:
            return f"the network {two}: it fills in parts of an image, which is not supported"
        return f"the network {two}; expected as many"


class ClassUNetConfig(_UNetConfig):
    """config.json of diffusers' `UNet2DModel`."""

    layers_per_block: Layers = 2
    attention_head_dim: Count | None = 8
    num_class_embeds: Count | None = None


class AnyTextUNetConfig(_UNetConfig):
    """Of diffusers' `UNet2DConditionModel`, whatever it is told."""

    in_channels: Count = 4
    out_channels: Count = 4
    layers_per_block: Layers | list[Layers] = 2
    attention_head_dim: Count | Widths = 8
    cross_attention_dim: Count | Widths = 1280
    transformer_layers_per_block: Layers | list[Layers] = 1
    num_class_embeds: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None


class TextUNetConfig(AnyTextUNetConfig):
    """config.json of diffusers' `UNet2DConditionModel`, conditioned on a text and nothing else."""

    addition_embed_type: None = None


class DDPMUNetConfig(Config):
    """config.json of this package's `DDPMUNet`, which checks how its sizes fit."""

    sample_size: Side = 32
    in_channels: Count = 3
    num_classes: Count = 10
    channels: Count = 128
    channel_mult: Widths
    attention_levels: Annotated[list[NonNegativeInt], Field(max_length=16)]
    blocks_per_level: Layers = 2
    norm_num_groups: Count = 32
    dropout: Share = 0.1
    null_class: bool = True


class AutoencoderConfig(Config):
    """config.json of diffusers' `AutoencoderKL`."""

    in_channels: Count = 3
    out_channels: Count = 3
    latent_channels: Count = 4
    block_out_channels: Widths
    layers_per_block: Layers = 1
    norm_num_groups: Count = 32
    scaling_factor: Factor = 0.18215
    shift_factor: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    latents_mean: None = None
    latents_std: None = None


class DeepAutoencoderConfig(Config):
    """config.json of diffusers' `AutoencoderDC`."""

    in_channels: Count = 3
    latent_channels: Count = 32
    attention_head_dim: Count = 32
    encoder_block_out_channels: Widths
    decoder_block_out_channels: Widths
    encoder_layers_per_block: Blocks
    decoder_layers_per_block: Blocks
    scaling_factor: Factor = 1.0


class TransformerConfig(Config):
    """Of diffusers' transformers that see patches of an image."""

    in_channels: Count = 16
    out_channels: Count | None = 16
    num_layers: Layers = 18
    attention_head_dim: Count = 64
    num_attention_heads: Count = 18
    patch_size: Side = 2


class SquareTransformerConfig(TransformerConfig):
    """Of those for images of one size."""

    sample_size: Side = 128

    @model_validator(mode="after")
    def _fits(self) -> SquareTransformerConfig:
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"'sample_size' {self.sample_size} is no multiple of 'patch_size' {self.patch_size}"
            )
        if self.out_channels not in (None, self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"the network takes {self.in_channels} channels and predicts {self.out_channels}; "
                "expected as many, or the variance as well"
            )
        return self


# ---- the noise schedule


SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep",
        "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep",
        "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
        "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
    )
)  # fmt: skip
"""Of diffusers: those that step through DDPM's noise process, however they step."""


class FlowScheduleConfig(Config):
    """scheduler_config.json of a rectified flow."""

    class_name: Literal["FlowMatchEulerDiscreteScheduler"] = Field(alias="_class_name")
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)]
    shift: Factor = 1.0
    use_dynamic_shifting: bool = False
    base_shift: Factor | None = 0.5
    max_shift: Factor | None = 1.15
    base_image_seq_len: Count | None = 256
    max_image_seq_len: Count | None = 4096
    invert_sigmas: Literal[False] = False
    shift_terminal: None = None
    time_shift_type: Literal["exponential"] = "exponential"
    use_karras_sigmas: Literal[False] = False
    use_exponential_sigmas: Literal[False] = False
    use_beta_sigmas: Literal[False] = False
    beta_start: None = None  # what tells the two kinds apart

    @model_validator(mode="after")
    def _can_shift(self) -> FlowScheduleConfig:
        told = (self.base_shift, self.max_shift, self.base_image_seq_len, self.max_image_seq_len)
        if self.use_dynamic_shifting and (None in told or told[2] == told[3]):
            raise ValueError(
                "'use_dynamic_shifting' needs 'base_shift', 'max_shift' and two different numbers "
                "of tokens, 'base_image_seq_len' and 'max_image_seq_len'"
            )
        return self


class ScheduleConfig(Config):
    """scheduler_config.json of a process that preserves the variance."""

    class_name: str = Field(alias="_class_name")
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)]
    beta_start: Beta
    beta_end: Beta
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    trained_betas: Annotated[list[Beta], Field(max_length=100_000)] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    variance_type: str | None = None
    clip_sample: bool = True
    clip_sample_range: Factor = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Field(ge=0, le=1)] = 0.995
    sample_max_value: Factor = 1.0
    steps_offset: Bit = 0
    set_alpha_to_one: bool = True
    timestep_spacing: Word = "leading"
    use_flow_sigmas: Literal[False] | None = None
    predict_epsilon: Literal[True] | None = None  # of old files, before prediction_type

    @field_validator("class_name")
    @classmethod
    def _shares_the_process(cls, name: str) -> str:
        if name not in SCHEDULERS:
            raise ValueError(
                f"a {shown(name)} adds noise in another way than DDPM, or is not known here; "
                f"supported are {few(sorted(SCHEDULERS), 6)}"
            )
        return name

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        betas, steps = self.trained_betas, self.num_train_timesteps
        if betas is not None and len(betas) != steps:
            raise ValueError(f"{len(betas)} 'trained_betas' for {steps} 'num_train_timesteps'")
        if self.variance_type in ("learned", "learned_range"):
            raise ValueError(
                f"'variance_type' {self.variance_type!r} is not supported: the network would have "
                "to predict the variance too"
            )
        return self


# ---- pecker_fast.json


class _Frozen(Schema):
    """What was compared with what, after a run."""

    model_config = ConfigDict(extra="allow")

    digests: dict[Word, Word] = Field(default_factory=dict)


class _Figures(Schema):
    """Measured figures, and what a run says of itself."""

    model_config = ConfigDict(extra="allow")

    t_init: NonNegativeInt | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    frozen: _Frozen = _Frozen()


class ClassDescription(Schema):
    """pecker_fast.json of a class model; people write it by hand."""

    kind: Literal["teacher", "generator"] = "teacher"
    class_names: Names = Field(default_factory=list)
    patch_size: Annotated[int, Field(ge=1, le=64)] = 1
    null_label: NonNegativeInt | None = None
    figures: _Figures = _Figures()
    schedule: ScheduleConfig | FlowScheduleConfig | None = None


class PipelineDescription(Schema):
    """pecker_fast.json of a pipeline."""

    model_config = ConfigDict(extra="allow")

    kind: Word = "text-to-image"
    class_names: Names = Field(default_factory=list)
    t_init: NonNegativeInt | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    frozen: _Frozen = _Frozen()
    schedule: ScheduleConfig | FlowScheduleConfig | None = None
    sample_size: Side | None = None  # of latent images, where the network takes any


def read_config(file: Path, schema: type[Schema]) -> dict[str, Any]:
    """A JSON file that fits a schema, as it stands there.

    Raises:
        PeckerError: it cannot be read, or does not fit.
    """
    content = read_json(file)
    checked(schema, content, file)
    return dict(content)


def pipeline_parts(file: Path) -> tuple[str, dict[str, str | None]]:
    """What model_index.json says: the pipeline's class, and the class of each of its parts.

    Raises:
        PeckerError: it cannot be read, or is no index of a pipeline.
    """
    index = read_json(file)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise PeckerError(f"{file}: expected an object with '_class_name', got {shown(index)}")
    parts: dict[str, str | None] = {}
    for part, value in index.items():
        if not isinstance(value, list):
            continue  # an option, such as requires_safety_checker
        if len(value) != 2 or not all(isinstance(word, str | None) for word in value):
            raise PeckerError(
                f"{file}: {few([part])} must be a library and a class in it, such as "
                f'["diffusers", "UNet2DModel"], got {shown(value)}'
            )
        parts[part] = value[1]
    return index["_class_name"], parts
