"""What stays the same through a run: the teacher, the schedule, the classes and the two losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pecker_fast.distill.conditions import ClassConditions, Conditions
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.losses import generator_loss, one_step_sample, pseudo_score_loss
from pecker_fast.distill.networks import (
    NoisePredictor,
    compute_dtype,
    predict_noise,
    with_autocast,
)
from pecker_fast.distill.randomness import IterationRandom
from pecker_fast.distill.schedule import NoiseSchedule

__all__ = ["DiffusionModel", "Draws", "Objective"]


class DiffusionModel(Protocol):
    """What `Objective.from_model` needs to know of a model; `ModelFolder` is one."""

    @property
    def unet(self) -> Any:
        """The class-conditional noise predictor."""

    @property
    def scheduler(self) -> Any:
        """Its diffusers scheduler."""

    @property
    def class_names(self) -> Sequence[str]:
        """One name per class."""

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one phase for N samples.

    Attributes:
        noise: (N, C, H, W) the generator's input n.
        e: (N, C, H, W) the noise that is added to its samples.
        t: (N,) int64, how much of it.
    """

    noise: Tensor
    e: Tensor
    t: Tensor

    def __getitem__(self, rows: slice) -> Draws:
        """The numbers of some samples."""
        return Draws(self.noise[rows], self.e[rows], self.t[rows])


class Objective:
    """The generator's samples and both losses, for one teacher and one configuration.

    Attributes:
        teacher: phi. Put in eval mode; its parameters stop requiring gradients. Never changed.
        schedule: Its noise schedule.
        conditions: Which class to forget and what takes its place.
        config: The run.
        sample_shape: (C, H, W) of what the networks see.
        device: The teacher's.
        dtype: Of images, noise and losses: float32, or float64 for a float64 teacher.
    """

    def __init__(
        self,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        conditions: ClassConditions,
        config: PeckerConfig,
        sample_shape: tuple[int, int, int],
        *,
        predict: NoisePredictor = predict_noise,
    ) -> None:
        """Put the pieces together; see the attributes. `predict` calls the networks."""
        self.teacher = teacher.eval().requires_grad_(False)
        self.schedule = schedule
        self.conditions = conditions
        self.config = config
        self.sample_shape = sample_shape
        self.device = next(teacher.parameters()).device
        self.dtype = compute_dtype(teacher)
        bf16 = config.precision == "bf16"
        self._predict = with_autocast(predict, self.device) if bf16 else predict

    @classmethod
    def from_model(cls, model: DiffusionModel, config: PeckerConfig) -> Objective:
        """The objective of a model folder.

        Raises:
            PeckerError: A class or a time constant that the model does not have.
        """
        schedule = NoiseSchedule.from_scheduler(model.scheduler, **config.diffusion.model_dump())
        names = model.class_names
        conditions = ClassConditions(config.forget, config.override, len(names), names)
        return cls(model.unet, schedule, conditions, config, model.network_shape)

    def draw(self, random: IterationRandom, count: int) -> Draws:
        """Random numbers for `count` samples."""
        shape = (count, *self.sample_shape)
        return Draws(
            random.normal(shape, self.dtype),
            random.normal(shape, self.dtype),
            random.timesteps(count, self.schedule),
        )

    def sample(self, generator: nn.Module, noise: Tensor, labels: Conditions) -> Tensor:
        """x_g = G(n, c), (N, C, H, W)."""
        return one_step_sample(
            generator,
            noise,
            self.schedule.t_init,
            labels.student,
            self.schedule,
            predict=self._predict,
        )

    def pseudo_score_loss(
        self, network: nn.Module, x_g: Tensor, draws: Draws, labels: Conditions
    ) -> Tensor:
        """Denoising loss of `network` on x_g, (N,)."""
        return pseudo_score_loss(
            network, x_g, draws.e, draws.t, labels.student, self.schedule, predict=self._predict
        )

    def generator_loss(
        self, pseudo_score: nn.Module, x_g: Tensor, draws: Draws, labels: Conditions
    ) -> Tensor:
        """Distillation loss ell of x_g, (N,)."""
        return generator_loss(
            x_g,
            draws.e,
            draws.t,
            self.teacher,
            pseudo_score,
            labels.teacher,
            labels.student,
            self.schedule,
            alpha=self.config.alpha,
            predict=self._predict,
            diff_instruct=self.config.diff_instruct,
        )
