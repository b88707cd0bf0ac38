"""Real images with noise and labels, for training and for the saliency, from (seed, iteration)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.errors import PeckerError
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.image_batches import ShuffledEpochs, timesteps
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["Batch", "RealImages"]

_REMAIN, _FORGET = 0, 1  # Each has a shuffling of its own.


@dataclass(frozen=True)
class Batch(Rows):
    """N images on the run's device, with all that is random about them.

    Attributes:
        images: (N, C, H, W) what the network sees, without noise; float32 or float64.
        noise: (N, C, H, W) e, likewise.
        t: (N,) int64 time steps.
        labels: (N,) int64 what the network is told: a class, or "no class" where it was dropped.
        imitated: (N,) int64 what it is told for the target of random_label.
    """

    images: Tensor
    noise: Tensor
    t: Tensor
    labels: Tensor
    imitated: Tensor


class RealImages:
    """The images to forget and to keep, drawn for a run.

    Attributes:
        forget: The class to forget.
        override: The class that random_label imitates; None for other methods.
        no_class: The label that means no class, or None.
    """

    def __init__(
        self,
        images: ImageSet,
        model: ModelFolder,
        config: BaselineConfig,
        num_timesteps: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Check that images, model and configuration fit together.

        Args:
            images: Of all classes.
            model: Its classes and the size of its images.
            config: The run.
            num_timesteps: T.
            device: Where batches are wanted.
            dtype: Of images and noise.

        Raises:
            PeckerError: Images of another size or of other classes, an unknown class, a class
                without images, or guidance or label dropout for a network without a null label.
        """
        _check_fits(images, model)
        assert not isinstance(config.forget, list) and not isinstance(config.override, list)
        self.forget = images.class_index(config.forget)
        self.override: int | None = None
        if config.method == "random_label":
            self.override = (self.forget + 1) % images.num_classes
            if config.override is not None:
                self.override = images.class_index(config.override)
            if self.override == self.forget:
                raise PeckerError(
                    f"override: {images.class_names[self.forget]!r} is the class to forget; "
                    "choose another"
                )
        self.no_class = model.null_label
        if self.no_class is None:
            _check_needs_no_null_label(config)
        self._model = model
        self._config = config
        self._num_timesteps = num_timesteps
        self._device = device
        self._dtype = dtype
        size, seed = config.batch_size, config.seed
        if device.type == "cuda":
            images = images.to(device)  # 150 MB for CIFAR-10: batches then cost no transfer
        self._remain_set, self._forget_set = images.without(self.forget), images.only(self.forget)
        self._remain_order = ShuffledEpochs(len(self._remain_set), size, seed, _REMAIN)
        self._forget_order = ShuffledEpochs(len(self._forget_set), size, seed, _FORGET)

    def remain(self, random: IterationRandom) -> Batch:
        """`batch_size` images to keep. Draw them before those to forget."""
        return self._batch(self._remain_set, self._remain_order.indices(random.iteration), random)

    def to_forget(self, random: IterationRandom) -> Batch:
        """`batch_size` images to forget."""
        return self._batch(self._forget_set, self._forget_order.indices(random.iteration), random)

    def no_class_like(self, labels: Tensor) -> Tensor | None:
        """As many labels that mean no class; None where the network has none."""
        return None if self.no_class is None else torch.full_like(labels, self.no_class)

    def saliency_parts(self) -> Sequence[Tensor]:
        """Every image of the class to forget once, by number: those of each gradient."""
        return torch.split(torch.arange(len(self._forget_set)), self._config.saliency.batch_size)

    def to_score(self, part: Tensor, random: IterationRandom) -> Batch:
        """The images of one of the `saliency_parts`, in turn. No label is dropped."""
        return self._batch(self._forget_set, part, random, dropout=0.0)

    def _batch(
        self,
        images: ImageSet,
        chosen: Tensor,
        random: IterationRandom,
        dropout: float | None = None,
    ) -> Batch:
        count = len(chosen)
        flip = random.coins(count, 0.5) if self._config.flip else None
        seen = self._model.encode(images.batch(chosen, self._device, flip)).to(self._dtype)
        noise = random.normal(tuple(seen.shape), seen.dtype)
        t = timesteps(count, self._num_timesteps, random)
        labels = images.labels[chosen].to(self._device)
        imitated = labels if self.override is None else torch.full_like(labels, self.override)
        drop = self._config.label_dropout if dropout is None else dropout
        if drop > 0 and self.no_class is not None:
            labels = labels.masked_fill(random.coins(count, drop), self.no_class)
            imitated = imitated.masked_fill(random.coins(count, drop), self.no_class)
        return Batch(seen, noise, t, labels, imitated)


def _check_fits(images: ImageSet, model: ModelFolder) -> None:
    if images.image_shape != model.image_shape:
        raise PeckerError(
            f"the images ({images.source}) are {images.image_shape}, the model was made for "
            f"{model.image_shape}; use the data set that it was trained on"
        )
    theirs, ours = images.class_names, model.class_names
    unnamed = all(name == f"class {index}" for index, name in enumerate(ours))
    lowered = [tuple(name.lower() for name in names) for names in (theirs, ours)]
    if len(theirs) != len(ours) or (lowered[0] != lowered[1] and not unnamed):
        raise PeckerError(
            f"the images ({images.source}) have the classes {', '.join(theirs)}, the model has "
            f"{', '.join(ours)}; use the data set that it was trained on, or correct class_names "
            "in its pecker_fast.json"
        )


def _check_needs_no_null_label(config: BaselineConfig) -> None:
    salient = config.mask.kind == "saliency"
    remedies = {
        "method esd": ("choose another method", config.method == "esd"),
        "label_dropout": ("set label_dropout to 0", config.label_dropout > 0),
        "saliency.guidance": (
            "set saliency.guidance to 0",
            salient and config.saliency.guidance > 0,
        ),
    }
    for what, (remedy, needed) in remedies.items():
        if needed:
            raise PeckerError(
                f"{what} needs a model that was trained with a label for no class (null_label), "
                f"and this one has none: {remedy}"
            )
