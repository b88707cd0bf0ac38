"""The methods that are trained on real images: SalUn, negative gradient, fine-tuning, ESD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.errors import PeckerError
from pecker_fast.masks.scores import LossFn
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.image_batches import ShuffledEpochs, timesteps
from pecker_fast.methods.losses import (
    Ask,
    denoising_loss,
    esd_loss,
    guided_denoising_loss,
    random_label_loss,
)
from pecker_fast.methods.objective import MethodObjective, Term
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["BaselineObjective", "Batch"]


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


class BaselineObjective(MethodObjective[Batch]):
    """The terms of a method that is trained on real images.

    Attributes:
        data: All images, as they were given.
        no_class: The label that means no class, or None. Without it no label is dropped, and the
            saliency is found without guidance.
    """

    reduction = "abs_of_sum"  # SalUn's, and so is the limit
    clip_saliency = 1.0

    def __init__(
        self,
        model: ModelFolder,
        images: ImageSet,
        config: BaselineConfig,
        device: torch.device | None = None,
    ) -> None:
        """As `MethodObjective`; `images` are what the model was trained on, of all classes.

        Raises:
            PeckerError: Images of another size or of other classes, an unknown class, a class
                without images, or esd of a network without a label for no class.
        """
        super().__init__(model, config, device)
        _check_fits(images, model)
        assert not isinstance(config.forget, list) and not isinstance(config.override, list)
        forget, override = images.class_index(config.forget), None
        if config.method == "random_label":
            override = (forget + 1) % images.num_classes
            if config.override is not None:
                override = images.class_index(config.override)
            if override == forget:
                raise PeckerError(
                    f"override: {images.class_names[forget]!r} is the class to forget; choose "
                    "another"
                )
        if config.method == "esd":
            if model.null_label is None:
                raise PeckerError(
                    "method esd needs a model that was trained with a label for no class "
                    "(null_label), and this one has none: choose another method"
                )
            self.frozen = self.look_up()
        self.data, self.no_class, self.pairs = images, model.null_label, ((forget, override),)
        # What was used, not how it was said: a class may be named or numbered on resuming.
        self.config = config.model_copy(update={"forget": forget, "override": override})
        terms: list[Term] = ["remain"] if config.lambda_remain > 0 else []
        self.terms = [*terms, "forget"] if config.forgets else terms
        self.passes = len(self.terms)
        if self.device.type == "cuda":
            images = images.to(self.device)  # 150 MB for CIFAR-10: batches then cost no transfer
        self._sets = {"remain": images.without(forget), "forget": images.only(forget)}
        self._orders = {  # each has a shuffling of its own
            term: ShuffledEpochs(len(part), config.batch_size, config.seed, stream)
            for stream, (term, part) in enumerate(self._sets.items())
        }

    def identity(self) -> dict[str, str]:
        """Digests of what a run depends on besides its configuration, by name."""
        return {**super().identity(), "images": self.data.fingerprint()}

    def batches(self, random: IterationRandom) -> list[Batch]:
        """Images of each term."""
        return [self.draw(term, random) for term in self.terms]

    def draw(self, term: Term, random: IterationRandom) -> Batch:
        """The images of a term; all terms of an iteration are drawn in the order of `terms`."""
        chosen = self._orders[term].indices(random.iteration)
        return self._batch(term, chosen, random, self.config.label_dropout)

    def losses_by_pass(
        self, network: nn.Module, batches: Sequence[Batch]
    ) -> Iterator[dict[Term, Tensor]]:
        """One term after the other."""
        for term, batch in zip(self.terms, batches, strict=True):
            yield {term: self.losses(term, network, batch)}

    def losses(self, term: Term, network: nn.Module, batch: Batch) -> Tensor:
        """A term's losses of `network`, (N,), without its lambda."""
        ask, method = self._asking(batch), self.config.method
        if term == "remain" or method == "negative_gradient":
            losses = denoising_loss(batch.noise, ask(network, batch.labels))
            return losses if term == "remain" else -losses
        if method == "random_label":
            return random_label_loss(ask, network, batch.labels, batch.imitated)
        assert self.frozen is not None and self.no_class is not None  # `__init__` has seen to it
        eta = self.config.eta
        return esd_loss(ask, network, self.frozen, batch.labels, self.no_class, eta)

    def saliency(
        self, network: nn.Module, random: IterationRandom
    ) -> tuple[int, Iterator[LossFn], Iterator[LossFn]]:
        """SalUn's: every image of the class to forget once, guided, at antithetic times."""
        count = torch.arange(len(self._sets["forget"]))
        parts = torch.split(count, self.config.saliency.batch_size)

        def loss(part: Tensor) -> Tensor:
            batch = self._batch("forget", part, random, 0.0)
            ask = self._asking(batch)
            return guided_denoising_loss(
                ask, network, batch.noise, batch.labels, self.no_class
            ).mean()

        return len(parts), (partial(loss, part) for part in parts), iter(())

    def _batch(self, term: Term, chosen: Tensor, random: IterationRandom, drop: float) -> Batch:
        images, count = self._sets[term], len(chosen)
        flip = random.coins(count, 0.5) if self.config.flip else None
        seen = self._model.encode(images.batch(chosen, self.device, flip)).to(self.dtype)
        noise = random.normal(tuple(seen.shape), seen.dtype)
        t = timesteps(count, self.schedule.usable, random)
        labels = images.labels[chosen].to(self.device)
        ((_, override),) = self.pairs
        imitated = labels if override is None else torch.full_like(labels, override)
        if drop > 0 and self.no_class is not None:
            labels = labels.masked_fill(random.coins(count, drop), self.no_class)
            imitated = imitated.masked_fill(random.coins(count, drop), self.no_class)
        return Batch(seen, noise, t, labels, imitated)

    def _asking(self, batch: Batch) -> Ask:
        """Asks networks about the noisy images of a batch."""
        x_t = self.schedule.add_noise(batch.images, batch.noise, batch.t)
        return lambda network, labels: self._predict(network, x_t, batch.t, labels)


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
