"""The configuration of a run: every constant of the method, checked.

The defaults are the published CIFAR-10 recipe of score forgetting distillation, plus the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pecker_fast.distill.text_config import TextSection, name_concepts
from pecker_fast.errors import PeckerError
from pecker_fast.runs.config import Fraction, Iterations, MaskChoice, MaskedConfig
from pecker_fast.runs.settings import Section, apply_overrides, build, read_settings, recipes_in

__all__ = ["PeckerConfig", "load_config", "recipe_names", "sets_guidance"]

RECIPES = Path(__file__).parent / "recipes"


class DiffusionSection(Section):
    """Time constants, in time steps of the teacher's schedule."""

    # The generator starts here. null = where sigma is nearest 2.5: 440 with linear betas.
    t_init: NonNegativeInt | None = None
    # First time step of the training noise. null = where sigma is nearest 0.1375: 38.
    t_min: NonNegativeInt | None = None
    t_max: PositiveInt | None = None  # Its end, exclusive. null = behind sigma 13: 712.

    @model_validator(mode="after")
    def _order(self) -> DiffusionSection:
        if self.t_min is not None and self.t_max is not None and self.t_min >= self.t_max:
            raise ValueError(f"t_min {self.t_min} must be below t_max {self.t_max}")
        return self


class NetworkSection(Section):
    """What a trained network learns from: the same keys for generator and pseudo-score."""

    lr: NonNegativeFloat = 1e-5  # Learning rate at the first iteration.
    lambda_remain: NonNegativeFloat = 1.0  # Weight of the remain term (batch mean).
    lambda_forget: NonNegativeFloat = 0.01  # Weight of the forget term (batch mean).
    clip: bool = True  # Limit its gradient entries to +-optimizer.clip_value.


class GeneratorSection(NetworkSection):
    """The generator's learning: SFD's loss, and two terms that SFD does not have.

    After a first stage the two can do without SFD's: what is to be drawn instead is known then.
    """

    # Score distillation, the method as published. false = neither teacher nor pseudo-score judge
    # the images, and the latter learns nothing.
    scores: bool = True
    # Weight of one_step: an image follows the one that the generator drew as the run began, of c_f
    # the one that it drew of c_o.
    one_step: NonNegativeFloat = 0.0
    # Weight of every_step: at every time step the generator predicts what the teacher does, of c_f
    # what that does of c_o. Without it c_f is forgotten where t_init is asked, and many-step
    # samplers still find it.
    every_step: NonNegativeFloat = 0.0
    # What that weight is multiplied with in the forget term: one step forgets sooner than many do.
    every_step_forget: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _learns(self) -> GeneratorSection:
        if not (self.scores or self.one_step or self.every_step):
            raise ValueError("scores false: then one_step or every_step must be above 0")
        return self


class MaskSection(MaskChoice):
    """Which entries may change, of which networks."""

    apply: Literal["generator", "both"] = "generator"  # both = the pseudo-score network as well.
    # With apply both: one set of weights for all three networks; the same bits, a third of the
    # memory. Networks that are given to the trainer keep their own.
    share_weights: bool = True
    refresh_every: NonNegativeInt = 0  # Iterations between new masks. 0 = found once.
    # Learning rates under the mask times density^-1/2. With beta1 0 every entry moves by about lr,
    # so a step is as long as a dense one.
    scale_lr: bool = False


class SaliencySection(Section):
    """How the saliency mask is found."""

    # forget = |gradient of the forget term|. denoise = the same of denoising c_f (SalUn's).
    # retain_aware = forget, over what the remain term needs; after a first stage only.
    # fisher_ratio = squares of denoise, of c_f over the classes to keep.
    kind: Literal["forget", "denoise", "retain_aware", "fisher_ratio"] = "forget"
    batches: PositiveInt = 40  # Gradients that are accumulated, of each half that is needed.
    batch_size: PositiveInt = 128  # Images per batch: the generator's own.
    clip_grad_norm: PositiveFloat | None = 1.0  # Global norm limit per batch. null = off.


class UntilSection(Section):
    """When what is to be forgotten has gone and the rest is kept, by a judge that looks on."""

    forget: Fraction = 0.02  # Share of the images of it that may still be recognised.
    keep_drop: Fraction = 0.03  # How far the share of the others may fall below the start's.
    every: PositiveInt = 5  # Iterations between two looks.
    images: PositiveInt = 180  # Images of it in a look, and as many of all others together.


class PeckerConfig(MaskedConfig):
    """A run of PECKER: score forgetting distillation under a saliency mask."""

    # The class to erase: index or name; or a list. null = none: the model is only distilled into
    # one step.
    forget: int | str | list[int | str] | None = 0
    # What takes its place: index, name, or 'random' (a kept class each); of a list one for all, or
    # one for each. `erase` also takes 'nearest' and 'classifier'.
    override: int | str | list[int | str] = 1
    iterations: Iterations = 50_000
    batch_size: PositiveInt = 128  # B: remain images and, again, forget images per iteration.
    micro_batch: PositiveInt | None = None  # Images per pass out of the 2B. null = all.
    # Networks that must be given to start from: those of a first stage, or a one-step generator.
    # advised = the run goes on without, and says what to expect.
    first_stage: Literal["none", "advised", "generator", "both"] = "none"
    # autocast = bf16 inside the networks, weights in fp32. bf16 = weights in bf16, and fp32 masters
    # of the entries that may change. Losses, images and schedule are fp32 in every case.
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    graph: Literal["auto", "off"] = "auto"  # auto = one CUDA graph per iteration, on CUDA.
    alpha: float = 1.2  # Weight of the score difference in the generator loss.
    # In the generator phase only one network's graph lives at a time, and forward passes run twice:
    # a seventh more work, a third of the activations. The generator's own only without dropout.
    # Of guidance one half's, in both phases: the pseudo-score's forward pass runs twice there too.
    recompute: bool = False
    # Of every block only its input is kept, and its forward pass runs twice: a third more work. Of
    # networks of diffusers; what large transformers need.
    recompute_blocks: bool = False
    diffusion: DiffusionSection = DiffusionSection()
    generator: GeneratorSection = GeneratorSection()
    pseudo_score: NetworkSection = NetworkSection()
    mask: MaskSection = MaskSection()
    saliency: SaliencySection = SaliencySection()
    # Stop as soon as this holds; `iterations` is the limit. null = run to the end.
    until: UntilSection | None = None
    text: TextSection | None = None  # Text-to-image models: prompts instead of classes.

    @model_validator(mode="after")
    def _consistent(self) -> PeckerConfig:
        if self.forget == self.override and self.text is None:
            raise ValueError(
                f"forget and override are the same class {self.forget!r}: nothing would be "
                "forgotten; choose another override"
            )
        if self.halves == 1:
            self._check_forgets_nothing()
        several = isinstance(self.forget, list) and len(self.forget) > 1
        if self.until is not None and (several or self.halves == 1):
            raise ValueError("until is for runs that forget one class or concept; set it to null")
        if self.mask.kind != "saliency":
            return self
        of_term = self.saliency.kind in ("forget", "retain_aware")
        if of_term and self.generator.lambda_forget == 0:
            raise ValueError(
                f"saliency.kind {self.saliency.kind} needs generator.lambda_forget > 0; use "
                "mask.kind full for a run that forgets nothing"
            )
        return self

    def check_start(self, generator: bool, pseudo_score: bool) -> list[str]:
        """What there is to say of which networks start elsewhere than at the teacher.

        Raises:
            PeckerError: A first stage is needed and not given.
        """
        if self.first_stage == "both" and not (generator and pseudo_score):
            raise PeckerError(
                "first_stage both: generator and pseudo-score network start where a first stage "
                "ended; give its run as --from, or set first_stage to none"
            )
        if self.first_stage == "generator" and not generator:
            raise PeckerError(
                "first_stage generator: the recipe starts from a one-step generator; give it as "
                "--generator (`pecker-fast convert` makes one of SiD-LSG's), or set first_stage to "
                "advised"
            )
        if self.first_stage == "advised" and not generator:
            note = (
                "the generator starts at the many-step model, but this recipe is for one that "
                "draws in one step already, what `pecker-fast distill` makes (--from) or SiD-LSG's "
                "(`pecker-fast convert --like`, --generator): expect blurred images"
            )
            return [note]
        return []

    def check_saliency(self, pseudo_score: bool) -> None:
        """Refuse a saliency that needs a pseudo-score of a first stage, without one."""
        kind = self.saliency.kind if self.mask.kind == "saliency" else None
        if kind == "retain_aware" and not pseudo_score:
            raise PeckerError(
                "saliency.kind retain_aware: the remain term has no gradient while the "
                "pseudo-score network is the teacher; start from a first stage (--from), or use "
                "saliency.kind fisher_ratio"
            )

    def _check_forgets_nothing(self) -> None:
        if self.generator.lambda_forget or self.pseudo_score.lambda_forget:
            raise ValueError(
                "nothing is forgotten (forget null, or no text.concepts), so "
                "generator.lambda_forget and pseudo_score.lambda_forget must be 0"
            )
        if self.mask.kind == "saliency":
            raise ValueError(
                "nothing is forgotten (forget null, or no text.concepts), so there is no saliency "
                "to find; use mask.kind full or random"
            )

    @property
    def halves(self) -> int:
        """Parts of a batch: 2, remain and forget; 1 where nothing is forgotten."""
        forgets = self.forget is not None if self.text is None else bool(self.text.concepts)
        return 2 if forgets else 1


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
    settings = {} if path is None else read_settings(Path(path), [RECIPES])
    apply_overrides(PeckerConfig, settings, overrides or {})
    if isinstance(settings.get("text"), dict):
        settings["text"] = name_concepts(settings["text"], names, name_overrides)
    return build(PeckerConfig, settings, path)


def sets_guidance(path: str | Path | None, overrides: Mapping[str, Any]) -> bool:
    """Whether the scales of guidance are the user's own, in a file or flags; as `load_config`."""
    settings = {} if path is None else read_settings(Path(path), [RECIPES], own=True)
    apply_overrides(PeckerConfig, settings, overrides)
    return bool((settings.get("text") or {}).get("guidance"))


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return recipes_in(RECIPES)
