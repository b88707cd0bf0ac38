"""What stays the same through a run: the original network, the images, the terms of the loss."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.networks import (
    NoisePredictor,
    compute_dtype,
    predict_noise,
    with_autocast,
)
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.methods.batches import Batch, RealImages
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.denoising import Ask, denoising_loss, guided_denoising_loss
from pecker_fast.methods.esd import esd_loss
from pecker_fast.methods.negative_gradient import negative_gradient_loss
from pecker_fast.methods.random_label import random_label_loss
from pecker_fast.runs.digest import digest_of, fingerprint
from pecker_fast.runs.randomness import IterationRandom

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["BaselineObjective", "Term"]

Term: TypeAlias = Literal["remain", "forget"]


class BaselineObjective:
    """The terms of a method's loss, for one model, one set of images and one configuration.

    Attributes:
        original: The network as it was given: put in eval mode, its parameters stop requiring
            gradients, and nothing else of it changes.
        frozen: The same on `device`, where esd looks its targets up: the original itself if it is
            there, else a copy. None for other methods.
        schedule: Its noise schedule.
        images: The images to forget and to keep.
        data: All images, as they were given.
        config: The run, its classes by index.
        device: Where the run takes place.
        terms: The terms that the method has, in the order in which they are drawn and computed.
    """

    def __init__(
        self,
        model: ModelFolder,
        images: ImageSet,
        config: BaselineConfig,
        device: torch.device | None = None,
        *,
        predict: NoisePredictor = predict_noise,
    ) -> None:
        """Put the pieces together; see the attributes.

        Args:
            model: The model that must forget.
            images: What it was trained on, of all classes.
            config: The run.
            device: None = where the network is.
            predict: Adapter that calls the network.

        Raises:
            PeckerError: Images that do not fit the model, or a class that it does not have.
        """
        self.original: nn.Module = model.unet.eval().requires_grad_(False)
        place = next(self.original.parameters()).device
        # torch.device("cuda") becomes the current one, with its number.
        self.device = torch.empty(0, device=place if device is None else device).device
        steps = model.scheduler.config.num_train_timesteps
        # t_init is the one-step generator's and plays no part here; any valid one will do.
        self.schedule = NoiseSchedule.from_scheduler(
            model.scheduler, t_init=0, t_min=0, t_max=steps
        )
        dtype = compute_dtype(self.original)
        self.images = RealImages(images, model, config, steps, self.device, dtype)
        self.data = images
        self._model = model
        # What was used, not how it was said: a class may be named or numbered on resuming.
        classes = {"forget": self.images.forget, "override": self.images.override}
        self.config = config.model_copy(update=classes)
        self.frozen: nn.Module | None = None
        if config.method == "esd":
            self.frozen = self.original
            if self.device != place:
                self.frozen = copy.deepcopy(self.original).to(self.device)
        self._predict = predict
        if config.precision == "autocast":
            self._predict = with_autocast(predict, self.device)
        terms: list[Term] = ["remain"] if config.lambda_remain > 0 else []
        self.terms: list[Term] = [*terms, "forget"] if config.uses_forget_images else terms

    def identity(self) -> dict[str, str]:
        """Digests of what a run depends on besides its configuration, by name."""
        given = {"noise schedule": self.schedule.alphas_cumprod, **self._model.about_network()}
        return {
            "model": fingerprint(self.original),
            "images": self.data.fingerprint(),
            **{name: digest_of(value) for name, value in given.items()},
        }

    def draw(self, term: Term, random: IterationRandom) -> Batch:
        """The images of a term; all terms of an iteration are drawn in the order of `terms`."""
        return self.images.remain(random) if term == "remain" else self.images.to_forget(random)

    def weight(self, term: Term) -> float:
        """Its lambda."""
        return self.config.lambda_remain if term == "remain" else self.config.lambda_forget

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

    def saliency_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss whose gradient is SalUn's saliency, (N,)."""
        no_class = self.images.no_class_like(batch.labels)
        guidance = self.config.saliency.guidance
        ask = self._asking(batch)
        return guided_denoising_loss(ask, network, batch.noise, batch.labels, no_class, guidance)

    def _asking(self, batch: Batch) -> Ask:
        """Asks networks about the noisy images of a batch."""
        x_t = self.schedule.add_noise(batch.images, batch.noise, batch.t)
        return lambda network, labels: self._predict(network, x_t, batch.t, labels)
