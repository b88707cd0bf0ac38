"""The configuration of a baseline: its method and every constant, from YAML and flags, checked.

The defaults are SalUn's published CIFAR-10 recipe. A configuration with the key `method` is one of
these, any other one is a distillation's (`pecker_fast.distill.config`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pecker_fast.datasets import Dataset
from pecker_fast.distill.config import RECIPES as DISTILLATIONS
from pecker_fast.distill.config import UntilSection
from pecker_fast.distill.text_config import TextSection, name_concepts
from pecker_fast.errors import PeckerError
from pecker_fast.files import shown
from pecker_fast.runs.config import EmaSection, Fraction, Iterations, MaskedConfig, OptimizerSection
from pecker_fast.runs.settings import Section, apply_overrides, build, read_settings

__all__ = ["BaselineConfig", "load_baseline_config", "names_a_baseline"]

RECIPES = Path(__file__).parent / "recipes"


class BaselineOptimizerSection(OptimizerSection):
    """Adam; gradients are limited by their norm, as the published code has it."""

    lr: NonNegativeFloat = 1e-4  # Learning rate at the first iteration.
    beta1: Fraction = 0.9
    clip_value: PositiveFloat | None = None  # Each gradient entry to +-this. null = off.
    clip_grad_norm: PositiveFloat | None = 1.0  # Norm over all entries, frozen ones too. null = off

    @model_validator(mode="after")
    def _has_whole_gradients(self) -> BaselineOptimizerSection:
        if self.release_grads and self.clip_grad_norm is not None:
            raise ValueError(
                "optimizer.clip_grad_norm is the norm over all entries, frozen ones too, which "
                "optimizer.release_grads does not keep; set one of them to null or false"
            )
        return self


class MethodSaliencySection(Section):
    """How the saliency mask is found: one pass over the real images of the class to forget.

    redirect: by its forget term, on images that the model draws, over what is kept.
    """

    batch_size: PositiveInt = 128  # Images per gradient.
    batches: PositiveInt = 2  # redirect: how often as many images are drawn, a gradient a step.


class ManyStepUntil(UntilSection):
    """As `UntilSection`; many steps take their time, so fewer images are looked at."""

    images: PositiveInt = 60  # Images of the class in a look, and as many of all others together.
    every: PositiveInt = 10  # Iterations between two looks.
    steps: Annotated[int, Field(ge=2)] = 10  # Of DDIM, in a look.


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # The denoising loss of the class is climbed (SalUn's code: --method ga). alpha is not published
    # for it; 1 is the default of that code's command line. Its README's 1e-3 leaves almost nothing
    # but the ascent. Both terms: sum over pixels, mean over the batch.
    "negative_gradient": {"lambda_remain": 1.0, "mask": {"kind": "full"}},
    # Go on with pretraining on the images to keep, and hope that the rest is forgotten. No
    # published code has this mode for a DDPM: the loss and label dropout are those of pretraining.
    "fine_tune": {"lambda_remain": 1.0, "mask": {"kind": "full"}},
    # The loss and eta are those of train_esd in SFD's DDPM code (--negative_guidance 7.5), which
    # SalUn's calls and no longer has. That loop steps before its backward pass, never drops a
    # gradient, and takes one image half-way through sampling, 10,000 times; here noisy real images
    # of the class are taken, a batch of them, as for the others. It sees no images to keep.
    "esd": {"lambda_remain": 0.0, "label_dropout": 0.0, "eta": 7.5, "mask": {"kind": "full"}},
}
"""What a method sets apart from SalUn, wherever a configuration does not say."""


class BaselineConfig(MaskedConfig):
    """A run of one network that stays a many-step model; on real images, but for redirect."""

    # random_label = SalUn, or RL with mask.kind full. negative_gradient = NegGrad, gradient ascent.
    # fine_tune = go on with the images to keep. esd = away from the class, by guidance.
    # redirect = the class is drawn as the override, on images that the model draws itself.
    method: Literal["random_label", "negative_gradient", "fine_tune", "esd", "redirect"] = (
        "random_label"
    )
    dataset: Dataset | None = None  # Images to train on. null = --dataset says which.
    forget: int | str | list[int | str] = 0  # Class to erase: index or name. redirect: or a list.
    # The class in its place. random_label: the one imitated, null = the next. redirect: also
    # 'random', a kept one each time; of a list one for all, or one for each. `erase` also takes
    # 'nearest' and 'classifier'.
    override: int | str | list[int | str] | None = None
    iterations: Iterations = 1_000
    batch_size: PositiveInt = 128  # Images to keep and, again, to forget, per iteration.
    precision: Literal["fp32", "autocast"] = "fp32"  # autocast = bf16 inside the network.
    lambda_forget: NonNegativeFloat = 1.0  # Weight of the forget term (batch mean).
    lambda_remain: NonNegativeFloat = 1e-3  # Weight of the remain term (batch mean); SalUn's alpha.
    # Share of samples that are told "no class", as in pretraining, where the model has such a
    # label. redirect: of those to keep.
    label_dropout: Fraction = 0.1
    flip: bool = True  # Mirror every other image, at random.
    eta: NonNegativeFloat = 1.0  # esd: how far away from the class.
    steps: PositiveInt = 10  # redirect: DDIM steps of its images, and passes in an iteration.
    # Stop as soon as this holds; `iterations` is the limit. null = run to the end.
    until: ManyStepUntil | None = None
    # redirect: text-to-image models, prompts instead of classes. The section itself, or the name of
    # a recipe or file that has it. Of guidance and negative prompts only guidance.kappa4 plays a
    # part: the report's images are drawn with it.
    text: TextSection | None = None
    optimizer: BaselineOptimizerSection = BaselineOptimizerSection()
    saliency: MethodSaliencySection = MethodSaliencySection()
    ema: EmaSection = EmaSection(decay=None)

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, settings: Any) -> Any:
        """Fill in `_DEFAULTS`."""
        if not isinstance(settings, dict):
            return settings
        settings = dict(settings)
        for key, value in _DEFAULTS.get(str(settings.get("method")), {}).items():
            given = settings.get(key, value)
            mixed = isinstance(value, Mapping) and isinstance(given, dict)
            settings[key] = {**value, **given} if mixed else given
        return settings

    @model_validator(mode="after")
    def _consistent(self) -> BaselineConfig:
        method = f"method {self.method}"
        several = isinstance(self.forget, list), isinstance(self.override, list)
        refused = {
            f"{method} puts no class in the place of the forgotten one: leave override out": (
                self.override is not None and self.method not in ("random_label", "redirect")
            ),
            f"forget and override are the same class {self.forget!r}: nothing would be forgotten; "
            "choose another override": self.override is not None and self.forget == self.override,
            f"{method} with lambda_forget 0 forgets nothing; raise it, or take method fine_tune": (
                self.forgets and self.lambda_forget == 0
            ),
            f"{method} needs lambda_remain > 0: it has no other term": (
                not self.forgets and self.lambda_remain == 0
            ),
            "until is for runs that forget one class; set it to null": (
                self.until is not None and isinstance(self.forget, list) and len(self.forget) > 1
            ),
            f"{method} forgets one class; method redirect takes a list": (
                any(several) and not self.data_free
            ),
            f"{method} is for class models; of prompts (text) there is redirect": (
                self.text is not None and not self.data_free
            ),
            "text.concepts: an empty list; method redirect needs one to forget": (
                self.text is not None and not self.text.concepts
            ),
        }
        unused: dict[str, Sequence[str]] = {}
        if self.data_free:
            unused["method redirect draws its images itself"] = ("dataset", "flip", "eta")
        if self.text is not None:
            about = "is about classes; prompts have text.concepts and text.dropout"
            unused[about] = ("forget", "override", "label_dropout")
        for reason, names in unused.items():
            for name in names:
                default = type(self).model_fields[name].default
                refused[f"{name}: {reason}; leave it out"] = getattr(self, name) != default
        for message, holds in refused.items():
            if holds:
                raise ValueError(message)
        return self

    @property
    def forgets(self) -> bool:
        """Whether there is a forget term: all methods but fine_tune."""
        return self.method != "fine_tune"

    @property
    def data_free(self) -> bool:
        """Whether no real images are needed."""
        return self.method == "redirect"


def names_a_baseline(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> bool:
    """Whether a file or recipe, or what is laid over it, has the key `method`.

    Raises:
        PeckerError: A file that cannot be read, or no such recipe of either kind.
    """
    if "method" in (overrides or {}):
        return True
    return path is not None and "method" in read_settings(Path(path), [DISTILLATIONS, RECIPES])


def load_baseline_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] = (),
    name_overrides: Sequence[str] = (),
) -> BaselineConfig:
    """Read a configuration and lay flags over it; arguments as for `distill.load_config`.

    Raises:
        PeckerError: A file that cannot be read, an unknown key (the nearest valid one is named),
            or a value out of range.
    """
    folders, values = [DISTILLATIONS, RECIPES], dict(overrides or {})
    settings = {} if path is None else read_settings(Path(path), folders)
    text = values.pop("text", settings.get("text"))
    if isinstance(text, str):  # a recipe that has it
        source, text = text, read_settings(Path(text), folders).get("text")
        if not isinstance(text, dict):
            raise PeckerError(
                f"text: {shown(source)} is about classes; name a recipe about prompts, such as "
                "object"
            )
    if text is not None:
        settings["text"] = text
    apply_overrides(BaselineConfig, settings, values)
    if isinstance(settings.get("text"), dict):
        settings["text"] = name_concepts(settings["text"], names, name_overrides)
    return build(BaselineConfig, settings, path)
