"""What stays the same through a run: the original network and the terms of the loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.networks import (
    compute_dtype,
    model_predictor,
    with_autocast,
)
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.masks.scores import LossFn
from pecker_fast.methods.batches import Batch, RealImages
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.denoising import Ask, denoising_loss, guided_denoising_loss
from pecker_fast.methods.esd import esd_loss
from pecker_fast.methods.negative_gradient import negative_gradient_loss
from pecker_fast.methods.random_label import random_label_loss
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.digest import digest_of, fingerprint
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["BaselineObjective", "MethodObjective", "Term"]

Term: TypeAlias = Literal["remain", "forget"]
B = TypeVar("B", bound=Rows)


class MethodObjective(ABC, Generic[B]):
    """The terms of a method's loss, for one model and one configuration.

    Attributes:
        original: The network as it was given: put in eval mode, its parameters stop requiring
            gradients, and nothing else of it changes.
        schedule: Its noise schedule.
        config: The run, its classes by index.
        device: Where the run takes place.
        dtype: Of images, noise and the network that learns.
        notes: What to know of what it is told, in lines to show.
        pairs: The classes to forget, and the class in the place of each; None where there is none.
            Of prompts none.
        terms: The terms that the method has, in the order in which they are drawn and computed.
        passes: Forward passes with a graph in an iteration.
        frozen: The original on `device` in `dtype`, where targets are looked up. None where none
            are.
    """

    config: BaselineConfig
    notes: Sequence[str] = ()
    frozen: nn.Module | None = None
    pairs: tuple[tuple[int, int | None], ...]
    terms: list[Term]
    passes: int

    def __init__(
        self,
        model: ModelFolder | PipelineFolder,
        config: BaselineConfig,
        device: torch.device | None,
    ) -> None:
        """Keep what every method needs.

        Args:
            model: The model that must forget; a pipeline where `config.text` says what.
            config: The run.
            device: None = where the network is.
        """
        self.original: nn.Module = model.network.eval().requires_grad_(False)
        self._place = next(self.original.parameters()).device
        # torch.device("cuda") becomes the current one, with its number.
        self.device = torch.empty(0, device=self._place if device is None else device).device
        self.dtype = compute_dtype(self.original)
        self._model: Any = model
        self.schedule = NoiseSchedule.whole(
            model.scheduler_config if isinstance(model, PipelineFolder) else model.scheduler
        )
        self._predict = model_predictor(model, self.schedule)
        if config.precision == "autocast":
            self._predict = with_autocast(self._predict, self.device)

    def identity(self) -> dict[str, str]:
        """Digests of what a run depends on besides its configuration, by name."""
        given = {"noise schedule": self.schedule.identity(), **self._about()}
        return {
            "model": fingerprint(self.original),
            **{name: digest_of(value) for name, value in given.items()},
        }

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = self._model.about_network()
        return about

    @abstractmethod
    def batches(self, random: IterationRandom) -> list[B]:
        """What an iteration learns from, a batch of each term."""

    @abstractmethod
    def losses_by_pass(
        self, network: nn.Module, batches: Sequence[B]
    ) -> Iterator[dict[Term, Tensor]]:
        """The losses, (N,) of each term, of one forward pass of `network` after the other."""

    @abstractmethod
    def weight(self, term: Term) -> float:
        """What a pass's mean loss is multiplied with."""

    @abstractmethod
    def saliency(
        self, network: nn.Module, random: IterationRandom
    ) -> tuple[int, Iterator[LossFn], Iterator[LossFn]]:
        """How many scalars are differentiated for the mask, and they; also those of what is kept.

        One gradient each; contrasts alone need the latter.
        """

    def around(self, original: nn.Module, values: Mapping[str, Any]) -> MethodObjective[B]:
        """The same of a copy of the network, with other settings under these dotted keys.

        Raises:
            PeckerError: settings that do not go together.
        """
        other = copy.copy(self)
        other.original = original.eval().requires_grad_(False)
        other.config = self.config.changed(values)
        if self.frozen is not None:
            other.frozen = other.look_up()
        return other

    def look_up(self) -> nn.Module:
        """The original on `device` in `dtype`: itself if that is what it is, else a copy."""
        first = next(self.original.parameters())
        if (self.device, self.dtype) == (self._place, first.dtype):
            return self.original
        return nn.Module.to(copy.deepcopy(self.original), self.device, self.dtype)


class BaselineObjective(MethodObjective[Batch]):
    """The terms of a method that is trained on real images.

    Attributes:
        frozen: The original on `device`, where esd looks its targets up. None for other methods.
        images: The images to forget and to keep.
        data: All images, as they were given.
    """

    def __init__(
        self,
        model: ModelFolder,
        images: ImageSet,
        config: BaselineConfig,
        device: torch.device | None = None,
    ) -> None:
        """Put the pieces together; see the attributes.

        Args:
            model: The model that must forget.
            images: What it was trained on, of all classes.
            config: The run.
            device: None = where the network is.

        Raises:
            PeckerError: Images that do not fit the model, or a class that it does not have.
        """
        super().__init__(model, config, device)
        steps = self.schedule.usable
        self.images = RealImages(images, model, config, steps, self.device, self.dtype)
        self.data = images
        classes = {"forget": self.images.forget, "override": self.images.override}
        self.pairs = ((self.images.forget, self.images.override),)
        # What was used, not how it was said: a class may be named or numbered on resuming.
        self.config = config.model_copy(update=classes)
        self.frozen = self.look_up() if config.method == "esd" else None
        terms: list[Term] = ["remain"] if config.lambda_remain > 0 else []
        self.terms = [*terms, "forget"] if config.forgets else terms
        self.passes = len(self.terms)

    def identity(self) -> dict[str, str]:
        """Digests of what a run depends on besides its configuration, by name."""
        return {**super().identity(), "images": self.data.fingerprint()}

    def batches(self, random: IterationRandom) -> list[Batch]:
        """Images of each term."""
        return [self.draw(term, random) for term in self.terms]

    def draw(self, term: Term, random: IterationRandom) -> Batch:
        """The images of a term; all terms of an iteration are drawn in the order of `terms`."""
        return self.images.remain(random) if term == "remain" else self.images.to_forget(random)

    def weight(self, term: Term) -> float:
        """Its lambda."""
        return self.config.lambda_remain if term == "remain" else self.config.lambda_forget

    def losses_by_pass(
        self, network: nn.Module, batches: Sequence[Batch]
    ) -> Iterator[dict[Term, Tensor]]:
        """One term after the other."""
        for term, batch in zip(self.terms, batches, strict=True):
            yield {term: self.losses(term, network, batch)}

    def losses(self, term: Term, network: nn.Module, batch: Batch) -> Tensor:
        """A term's losses of `network`, (N,), without its lambda."""
        ask, labels = self._asking(batch), batch.labels
        if term == "remain":
            return denoising_loss(batch.noise, ask(network, labels))
        if self.config.method == "negative_gradient":
            return negative_gradient_loss(batch.noise, ask(network, labels))
        no_class = self.images.no_class_like(labels)
        if self.frozen is None or no_class is None:  # RealImages refuses esd without one
            return random_label_loss(ask, network, labels, batch.imitated)
        return esd_loss(ask, network, self.frozen, labels, no_class, self.config.eta)

    def saliency(
        self, network: nn.Module, random: IterationRandom
    ) -> tuple[int, Iterator[LossFn], Iterator[LossFn]]:
        """SalUn's: every image of the class to forget once, guided, at antithetic times."""
        parts = self.images.saliency_parts()
        losses = (partial(self._saliency_loss, network, part, random) for part in parts)
        return len(parts), losses, iter(())

    def _saliency_loss(self, network: nn.Module, part: Tensor, random: IterationRandom) -> Tensor:
        batch = self.images.to_score(part, random)
        no_class = self.images.no_class_like(batch.labels)
        guidance = self.config.saliency.guidance
        ask = self._asking(batch)
        return guided_denoising_loss(
            ask, network, batch.noise, batch.labels, no_class, guidance
        ).mean()

    def _asking(self, batch: Batch) -> Ask:
        """Asks networks about the noisy images of a batch."""
        x_t = self.schedule.add_noise(batch.images, batch.noise, batch.t)
        return lambda network, labels: self._predict(network, x_t, batch.t, labels)
