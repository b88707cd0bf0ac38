"""What stays the same through a run: the original network, the images, the terms of the loss."""

from __future__ import annotations

import copy
from typing import Any, Literal, Protocol, TypeAlias

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
from pecker_fast.methods.batches import Batch, ImageModel, RealImages
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.losses import (
    denoising_loss,
    esd_loss,
    guided_denoising_loss,
    negative_gradient_loss,
    random_label_loss,
)
from pecker_fast.runs.randomness import IterationRandom

__all__ = ["BaselineObjective", "RealImageModel", "Term"]

Term: TypeAlias = Literal["remain", "forget"]


class RealImageModel(ImageModel, Protocol):
    """What has to be known of a model to train it; `ModelFolder` is one."""

    @property
    def unet(self) -> Any:
        """The class-conditional noise predictor."""

    @property
    def scheduler(self) -> Any:
        """Its diffusers scheduler."""


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
        model: RealImageModel,
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

    def draw(self, term: Term, random: IterationRandom) -> Batch:
        """The images of a term; all terms of an iteration are drawn in the order of `terms`."""
        return self.images.remain(random) if term == "remain" else self.images.to_forget(random)

    def weight(self, term: Term) -> float:
        """Its lambda."""
        return self.config.lambda_remain if term == "remain" else self.config.lambda_forget

    def losses(self, term: Term, network: nn.Module, batch: Batch) -> Tensor:
        """A term's losses of `network`, (N,), without its lambda."""
        method, images, predict = self.config.method, self.images, self._predict
        if term == "remain" or method == "negative_gradient":
            loss = denoising_loss if term == "remain" else negative_gradient_loss
            return loss(
                network,
                batch.images,
                batch.noise,
                batch.t,
                batch.labels,
                self.schedule,
                predict=predict,
            )
        x_t = self.schedule.add_noise(batch.images, batch.noise, batch.t)
        if self.frozen is None:
            return random_label_loss(
                network, x_t, batch.t, batch.labels, batch.imitated, predict=predict
            )
        no_class = images.no_class_like(batch.labels)
        assert no_class is not None  # RealImages refuses esd otherwise
        return esd_loss(
            network,
            self.frozen,
            x_t,
            batch.t,
            batch.labels,
            no_class,
            self.config.eta,
            predict=predict,
        )

    def saliency_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss whose gradient is SalUn's saliency, (N,)."""
        return guided_denoising_loss(
            network,
            batch.images,
            batch.noise,
            batch.t,
            batch.labels,
            self.images.no_class_like(batch.labels),
            self.config.saliency.guidance,
            self.schedule,
            predict=self._predict,
        )
