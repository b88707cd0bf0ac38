"""The configurations of teachers and classifiers: published constants as defaults, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pecker_fast.datasets import Dataset
from pecker_fast.errors import PeckerError
from pecker_fast.runs.config import EmaSection, Fraction, RunConfig, learning_rate_factor
from pecker_fast.runs.settings import Section, apply_overrides, build, load

__all__ = ["ClassifierConfig", "TeacherConfig", "classifier_config", "load_teacher_config"]

RECIPES = Path(__file__).parent / "training_recipes"
Length: TypeAlias = Annotated[int, Field(gt=0, le=10**9)]


class AdamSection(Section):
    """Adam and what is done to gradients before it."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = 1.0  # Norm of the whole gradient at most. null = off.


class TrainingConfig(RunConfig):
    """What training a teacher and training a classifier have in common."""

    iterations: Length | None = None
    precision: Literal["fp32", "autocast"] = "fp32"  # autocast = bf16 inside the network.
    lr: NonNegativeFloat
    warmup: NonNegativeInt = 0  # Iterations in which the learning rate rises from 0 to lr.
    flip: bool = True  # Half of the images are mirrored left to right, drawn anew each time.
    optimizer: AdamSection = AdamSection()

    def rate(self, iteration: int) -> float:
        """As `RunConfig.rate`, after the warm-up."""
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        done, length = iteration - self.warmup, self.length - self.warmup
        return learning_rate_factor(self.lr_schedule, done, length)


class DenoiserSection(Section):
    """The noise predictor; image size and number of classes come from the data set."""

    # DDPMUNet, or diffusers' UNet2DModel or DiTTransformer2DModel; of the last only channels,
    # blocks_per_level, dropout and patch_size are meant, and attention has 32 channels a head.
    kind: Literal["ddpm", "unet2d", "dit"] = "ddpm"
    channels: PositiveInt = 128  # Base width.
    channel_mult: tuple[PositiveInt, ...] = (1, 2, 2, 2)  # Width of each level, finest first.
    attention_levels: tuple[NonNegativeInt, ...] = (1,)  # Levels with attention.
    blocks_per_level: PositiveInt = 2
    norm_num_groups: PositiveInt = 32
    dropout: Fraction = 0.1
    patch_size: PositiveInt = 1  # Neighbouring pixels, a square of this side, become channels.


class TeacherConfig(TrainingConfig):
    """Denoising training of a class-conditional model. Defaults: CIFAR-10's DDPM as published."""

    iterations: Length = 800_000
    lr: NonNegativeFloat = 2e-4
    # Fused blocks on CUDA, Winograd's convolutions on a CPU: the same method, other rounding.
    accelerate: bool = True
    # An image's loss is the sum over its pixels, as published, or their mean. The limit on the
    # gradient's norm acts on what is chosen here.
    loss: Literal["sum", "mean"] = "sum"
    dataset: Dataset | None = None  # Images to train on. null = --dataset says which.
    # A rectified flow instead of DDPM's noise: its velocity is learnt, at times whose logits are
    # normal.
    flow: bool = False
    label_dropout: Fraction = 0.1  # Share that is trained under "no class".
    without: int | str | None = None  # Class whose images are left out: index or name.
    network: DenoiserSection = DenoiserSection()
    ema: EmaSection = EmaSection()


class ClassifierConfig(TrainingConfig):
    """Training of the classifier that judges images.

    Defaults: ResNet-34 as published, which is ImageNet's fine-tuned. `iterations` null means as
    many as `epochs` need; `resolved` puts the number in.
    """

    arch: Literal["resnet34", "small"] = "resnet34"
    epochs: Length = 10  # Passes over the images.
    lr: NonNegativeFloat = 1e-5
    width: PositiveInt = 64  # Channels of the first layers.
    input_size: PositiveInt | None = 224  # Images are resized to this first. null = as they are.
    # So many of the training and test images together are drawn to test on, and not trained on.
    # null = the test images of the data set.
    held_out: PositiveInt | None = None
    label_smoothing: Fraction = 0.0
    # Every other image gets noise of a random size up to this: generated images are never as clean
    # as real ones, and a brittle judge would report its own faults.
    noise: NonNegativeFloat = 0.0
    optimizer: AdamSection = AdamSection(weight_decay=5e-4, clip_norm=None)

    def resolved(self, images: int) -> ClassifierConfig:
        """The same with `iterations` filled in, and a warm-up of at most a tenth of them.

        Args:
            images: Number of images that are trained on.
        """
        count = self.iterations or math.ceil(self.epochs * images / self.batch_size)
        warmup = min(self.warmup, count // 10)
        return self.model_copy(update={"iterations": count, "warmup": warmup})


_SCRATCH = {
    "lr_schedule": "cosine", "input_size": None, "optimizer.weight_decay": 0.05,
}  # fmt: skip
CLASSIFIERS: Mapping[str, Mapping[str, Any]] = {
    "resnet34": {**_SCRATCH, "lr": 1e-3, "warmup": 1000, "epochs": 60},
    "small": {
        **_SCRATCH, "lr": 4e-3, "warmup": 200, "batch_size": 256, "width": 32, "flip": False,
        "label_smoothing": 0.02, "noise": 0.2,
    },
}  # fmt: skip
"""What each kind of classifier sets apart from the defaults when it starts untrained."""


def load_teacher_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> TeacherConfig:
    """Read a teacher's configuration and lay flags over it; arguments as for `distill.load_config`.

    Raises:
        PeckerError: A file that cannot be read, an unknown key (the nearest valid one is named),
            or a value out of range.
    """
    return load(TeacherConfig, path, overrides, [RECIPES])


def classifier_config(
    arch: str, overrides: Mapping[str, Any] | None = None, *, pretrained: bool = False
) -> ClassifierConfig:
    """The configuration of a kind of classifier, with dotted keys laid over it.

    Args:
        arch: One of `CLASSIFIERS`.
        overrides: They win over what the kind sets.
        pretrained: It starts from weights that it is given: the published constants.

    Raises:
        PeckerError: An unknown kind or key, or a value out of range.
    """
    if arch not in CLASSIFIERS:
        raise PeckerError(f"unknown classifier {arch!r}; known are {', '.join(CLASSIFIERS)}")
    settings: dict[str, Any] = {"arch": arch}
    # The defaults of the section, since a single key would replace it by the section's own ones.
    settings["optimizer"] = ClassifierConfig().optimizer.model_dump()
    kind = {} if pretrained else CLASSIFIERS[arch]
    apply_overrides(ClassifierConfig, settings, {**kind, **(overrides or {})})
    return build(ClassifierConfig, settings, None)
