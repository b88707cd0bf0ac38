"""The configuration of a run: every constant of the method, from YAML and flags, checked.

The defaults are the published CIFAR-10 recipe of score forgetting distillation, plus the mask.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pecker_fast.distill.text_config import TextSection, name_concepts
from pecker_fast.errors import PeckerError

__all__ = ["PeckerConfig", "load_config", "recipe_names"]

Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Density: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    """Immutable; an unknown key, an infinity or a NaN is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DiffusionSection(_Section):
    """Time constants, in time steps of the teacher's schedule."""

    t_init: NonNegativeInt = 440  # The generator starts here; sigma 2.50 with linear betas.
    t_min: NonNegativeInt = 38  # First time step of the training noise.
    t_max: PositiveInt = 712  # Its end, exclusive.

    @model_validator(mode="after")
    def _order(self) -> DiffusionSection:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min {self.t_min} must be below t_max {self.t_max}")
        return self


class NetworkSection(_Section):
    """What a trained network learns from: the same keys for generator and pseudo-score."""

    lr: NonNegativeFloat = 1e-5  # Learning rate at the first iteration.
    lambda_remain: NonNegativeFloat = 1.0  # Weight of the remain term (batch mean).
    lambda_forget: NonNegativeFloat = 0.01  # Weight of the forget term (batch mean).


class OptimizerSection(_Section):
    """Adam, for both networks."""

    beta1: Decay = 0.0  # 0 = no first moment is kept at all.
    beta2: Decay = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0  # Decoupled, as in AdamW.
    clip_value: PositiveFloat | None = 1.0  # Each gradient entry to +-this. null = off.
    release_grads: bool = False  # Free a dense gradient as soon as its salient entries are kept.
    backend: str = "auto"  # auto, or one of `pecker-fast info`.


class MaskSection(_Section):
    """Which entries may change."""

    kind: Literal["saliency", "random", "full"] = "saliency"
    density: Density = 0.5  # Fraction of all entries that may change.
    apply: Literal["generator", "both"] = "generator"  # both = the pseudo-score network as well.
    # With apply both: one set of weights for all three networks; the same bits, a third of the
    # memory. Networks that are given to the trainer keep their own.
    share_weights: bool = True
    scope: Literal["global", "per_tensor"] = "global"  # One ranking, or one per parameter.
    granularity: Literal["element", "out_channel", "block", "tensor"] = "element"
    block_size: PositiveInt = 64  # Entries in a block, with granularity block.
    refresh_every: NonNegativeInt = 0  # Iterations between new masks. 0 = found once.


class SaliencySection(_Section):
    """How the saliency mask is found."""

    loss: Literal["sfd_forget", "denoise"] = "sfd_forget"  # Forget term, or denoising of c_f.
    source: Literal["generated"] = "generated"  # Images: the generator's own, of the forget class.
    batches: PositiveInt = 40  # Gradients that are accumulated.
    batch_size: PositiveInt = 128  # Images per batch.
    reduction: Literal["abs_of_sum", "sum_of_abs", "sum_of_squares", "fisher_ratio"] = "abs_of_sum"
    clip_grad_norm: PositiveFloat | None = 1.0  # Global norm limit per batch. null = off.


class EmaSection(_Section):
    """Average of the generator's salient entries."""

    decay: Decay | None = 0.9999  # Per iteration. null = off.


class LoggingSection(_Section):
    """What is written down and when; changes no result."""

    every: PositiveInt = 10  # Iterations between two readings of the losses.
    checkpoint_every: PositiveInt = 500  # Iterations between two checkpoints.
    tensorboard: bool = False  # Event files in the run directory.


class PeckerConfig(_Section):
    """A run of PECKER: score forgetting distillation under a saliency mask."""

    forget: int | str = 0  # The class to erase: index or name.
    override: int | str = 1  # What takes its place: index, name, or 'random' (a kept class each).
    iterations: NonNegativeInt = 50_000
    batch_size: PositiveInt = 128  # B: remain images and, again, forget images per iteration.
    micro_batch: PositiveInt | None = None  # Images per pass out of the 2B. null = all.
    seed: NonNegativeInt = 0
    # autocast = bf16 inside the networks, weights in fp32. bf16 = weights in bf16, and fp32 masters
    # of the entries that may change. Losses, images and schedule are fp32 in every case.
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    accelerate: bool = True  # Fused blocks where they run (CUDA); the same method, other rounding.
    graph: Literal["auto", "off"] = "auto"  # auto = one CUDA graph per iteration, on CUDA.
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # Falls to 0 at the end.
    alpha: float = 1.2  # Weight of the score difference in the generator loss.
    share_generator_pass: bool = False  # One generator pass for both phases: near-exact, faster.
    # In the generator phase only one network's graph lives at a time, and forward passes run twice:
    # a seventh more work, a third of the activations. The generator's own only without dropout.
    recompute: bool = False
    diff_instruct: bool = False  # No gradient through the scores: another, cheaper algorithm.
    diffusion: DiffusionSection = DiffusionSection()
    generator: NetworkSection = NetworkSection()
    pseudo_score: NetworkSection = NetworkSection()
    optimizer: OptimizerSection = OptimizerSection()
    mask: MaskSection = MaskSection()
    saliency: SaliencySection = SaliencySection()
    ema: EmaSection = EmaSection()
    logging: LoggingSection = LoggingSection()
    text: TextSection | None = None  # Text-to-image models: prompts instead of classes.

    @model_validator(mode="after")
    def _consistent(self) -> PeckerConfig:
        if self.forget == self.override and self.text is None:
            raise ValueError(
                f"forget and override are the same class {self.forget!r}: nothing would be "
                "forgotten; choose another override"
            )
        if self.share_generator_pass and self.micro_batch is not None:
            raise ValueError(
                "share_generator_pass holds the generator's graph of the whole batch, which "
                "micro_batch exists to avoid; set one of them"
            )
        if self.share_generator_pass and self.recompute:
            raise ValueError(
                "share_generator_pass holds the generator's graph through both phases, which "
                "recompute exists to avoid; set one of them"
            )
        if self.mask.kind != "saliency":
            return self
        if self.saliency.loss == "sfd_forget" and self.saliency.reduction == "fisher_ratio":
            raise ValueError(
                "saliency.reduction fisher_ratio needs saliency.loss denoise: the remain term of "
                "sfd_forget has no gradient while the pseudo-score equals the teacher"
            )
        if self.saliency.loss == "sfd_forget" and self.generator.lambda_forget == 0:
            raise ValueError(
                "saliency.loss sfd_forget needs generator.lambda_forget > 0; use mask.kind full "
                "for a run that forgets nothing"
            )
        return self

    def check_resumes(self, saved: Mapping[str, Any], iteration: int, where: str) -> None:
        """Refuse to resume a run under settings that would change its results.

        Logging may change, and so may the number of iterations as long as the learning rate does
        not depend on it.

        Args:
            saved: `flat()` of the run's own configuration.
            iteration: Iterations that the run has done.
            where: The run's directory, for the message.

        Raises:
            PeckerError: A setting differs; its key and both values are named.
        """
        ours = self.flat()
        for key in [*ours, *(key for key in saved if key not in ours)]:
            free = key.startswith("logging.") or (
                key == "iterations" and self.lr_schedule == "constant"
            )
            if not free and ours.get(key) != saved.get(key):
                raise PeckerError(
                    f"{where} holds a run with {key} {saved.get(key)!r}, this one has "
                    f"{ours.get(key)!r}; use the same value to resume, or another directory"
                )
        if iteration > self.iterations:
            raise PeckerError(
                f"{where} holds a run of {iteration} iterations, more than the {self.iterations} "
                "asked for; raise iterations, or choose another directory"
            )

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key, e.g. `mask.density`."""
        return dict(_flatten(self.model_dump(), ""))

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] = (),
    name_overrides: Sequence[str] = (),
) -> PeckerConfig:
    """Read a configuration and lay flags over it.

    Args:
        path: A YAML file, or the name of a shipped recipe (`recipe_names`). None = the defaults.
        overrides: Dotted keys, e.g. `{"mask.density": 0.1}`. They win over the file.
        names: The concepts that a recipe for text leaves open.
        name_overrides: What takes the place of each.

    Returns:
        The checked configuration.

    Raises:
        PeckerError: A file that cannot be read, an unknown key (the nearest valid one is named),
            or a value out of range.
    """
    settings = {} if path is None else _read(Path(path))
    for key, value in (overrides or {}).items():
        _set(settings, key, value)
    if isinstance(settings.get("text"), dict):
        settings["text"] = name_concepts(settings["text"], names, name_overrides)
    try:
        return PeckerConfig.model_validate(settings)
    except ValidationError as error:
        origin = f" in {path}" if path is not None else ""
        raise PeckerError(_one_line(error) + origin) from None


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.yaml"))


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == "" and not path.exists() and path.name in recipe_names():
        path = Path(__file__).parent / f"{path.name}.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PeckerError(
            f"no configuration file {path}; shipped recipes are {', '.join(recipe_names())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PeckerError(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise PeckerError(f"{path} is not valid YAML: {reason}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise PeckerError(f"{path} must hold 'key: value' lines, got a {type(settings).__name__}")
    return settings


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for name in sections:
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            raise PeckerError(_unknown(key))
        settings = inner
    settings[last] = value


def _flatten(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _known() -> list[str]:
    """Every dotted key there is, those of an optional section included."""
    text = TextSection.model_construct()
    fields = ((name, getattr(text, name, None)) for name in TextSection.model_fields)
    sections = {n: v.model_dump() if isinstance(v, BaseModel) else v for n, v in fields}
    return [*PeckerConfig().flat(), *(key for key, _ in _flatten(sections, "text."))]


def _unknown(key: str) -> str:
    known = _known()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    # A key that is right but for its section is nearer than any spelling.
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    return f"unknown configuration key {key!r}; did you mean {(same_name or near)[0]!r}?"


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(parts))
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    # The location of a union (int | str, float | None) ends in its branch; the key does not.
    known = _known()
    while len(parts) > 1 and ".".join(parts) not in known:
        parts.pop()
    key = ".".join(parts)
    if first["type"] == "model_type":
        keys = [name for name in known if name.startswith(f"{key}.")]
        return f"{key} must be a section with keys such as {keys[0]!r}, got {first['input']!r}"
    message = first["msg"].replace("Input should be", "must be", 1)
    return f"{key} {message}, got {first['input']!r}"
