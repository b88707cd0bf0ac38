"""What stays the same through a run: the teacher, its schedule, what to forget, how to call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.distill.conditions import ClassConditions, Conditions, DrawsConditions
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.losses import distillation_loss, one_step_sample, pseudo_score_loss
from pecker_fast.distill.network_set import NetworkSet, Role, alias
from pecker_fast.distill.networks import (
    Guided,
    NoisePredictor,
    Predictors,
    compute_dtype,
    model_predictor,
    predict_noise,
    with_autocast,
)
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.nn.recomputing import computed_again
from pecker_fast.runs.digest import digest_of
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["Draws", "Noised", "Objective"]


@dataclass(frozen=True)
class Noised(Rows):
    """The random numbers that make N noisy images of images."""

    e: Tensor  # (N, C, H, W) the noise that is added
    t: Tensor  # (N,) int64, how much of it


@dataclass(frozen=True)
class Draws(Noised):
    """Those of one phase, which draws the images too."""

    noise: Tensor  # (N, C, H, W) the generator's input n


class Objective:
    """What the losses are made of, for one teacher and one configuration.

    Attributes:
        original: The teacher as it was given: put in eval mode, its parameters stop requiring
            gradients, and nothing else of it changes.
        teacher: phi, on `device` and in the precision of the run: the original itself where that
            is what it is, else a copy.
        schedule: Its noise schedule.
        conditions: What to forget and what takes its place.
        config: The run.
        predictors: Call the networks, in each place of the method.
        notes: What to know of the conditions, in lines to show.
        sample_shape: (C, H, W) of what the networks see.
        device: Where the run takes place.
        dtype: Of images, noise and losses: float32, or float64 for a float64 teacher.
    """

    def __init__(
        self,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        conditions: DrawsConditions,
        config: PeckerConfig,
        sample_shape: tuple[int, int, int],
        *,
        device: torch.device | None = None,
        predict: NoisePredictor | Predictors = predict_noise,
        notes: Sequence[str] = (),
        given: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Put the pieces together; see the attributes.

        Args:
            teacher: The noise predictor.
            schedule: Its schedule.
            conditions: Draws the labels.
            config: The run.
            sample_shape: (C, H, W).
            device: None = the teacher's.
            predict: Calls the networks, everywhere alike or in each place of the method.
            notes: As the attribute.
            given: What else a run depends on, by its name: the model's description, the prompts.
        """
        self.notes = tuple(notes)
        first = next(teacher.parameters())
        self.original = teacher.eval().requires_grad_(False)
        self.schedule = schedule
        self.conditions = conditions
        self.config = config
        self.sample_shape = sample_shape
        self._given = given
        # torch.device("cuda") becomes the current one, with its number.
        self.device = first.device if device is None else torch.empty(0, device=device).device
        self.dtype = compute_dtype(teacher)
        # A network in half precision is not trained in it unless asked to.
        dtype = torch.bfloat16 if config.precision == "bf16" else self.dtype
        self.teacher = teacher
        self._original_weights = False  # of a teacher that is another module
        if (self.device, dtype) != (first.device, first.dtype):
            # nn.Module's `to`: diffusers' own warns of every cast.
            self.teacher = nn.Module.to(copy.deepcopy(teacher), self.device, dtype)
        self._predict = predict
        self.predictors = predict if isinstance(predict, Predictors) else Predictors.all(predict)
        # Halves in turn hold a gradient of every parameter from the first to the second, which
        # released gradients are to avoid; where blocks are computed again that is more than they
        # save: 16.9 GiB for 12.8 with Stable Diffusion XL.
        released = config.recompute_blocks and config.optimizer.release_grads
        if config.recompute and not released:
            self.predictors = self.predictors.apart()
        if config.precision == "autocast":
            self.predictors = self.predictors.map(lambda p: with_autocast(p, self.device))

    @classmethod
    def from_model(
        cls, model: ModelFolder, config: PeckerConfig, device: torch.device | None = None
    ) -> Objective:
        """The objective of a model folder, on `device` (None = where the model is).

        Raises:
            PeckerError: A class or a time constant that the model does not have.
        """
        schedule = NoiseSchedule.from_scheduler(model.scheduler, **config.diffusion.model_dump())
        names = model.class_names
        conditions = ClassConditions(config.forget, config.override, len(names), names)
        predict = model_predictor(model, schedule)
        pieces = model.network, schedule, conditions, config, model.network_shape
        return cls(*pieces, device=device, predict=predict, given=model.about_network)

    @classmethod
    def from_pipeline(
        cls, pipeline: PipelineFolder, config: PeckerConfig, device: torch.device | None = None
    ) -> Objective:
        """The objective of a text-to-image model, whose prompts `config.text` describes.

        Raises:
            PeckerError: No `config.text`, prompts that cannot be used, or a time constant or
                prediction type that the model does not have.
        """
        schedule = NoiseSchedule.from_scheduler_config(
            pipeline.scheduler_config, **config.diffusion.model_dump()
        )
        predict = model_predictor(pipeline, schedule)
        conditions = TextConditions.of_pipeline(pipeline, config.text, config.seed, device)
        pieces = pipeline.network, schedule, conditions, config, pipeline.network_shape
        return cls(
            *pieces,
            device=device,
            predict=conditions.predictors(predict),
            notes=conditions.cut_off(pipeline),
            given=lambda: conditions.about(pipeline),
        )

    def around(self, teacher: nn.Module, values: Mapping[str, Any]) -> Objective:
        """The same of a copy of the teacher, with other settings under these dotted keys.

        Raises:
            PeckerError: settings that do not go together.
        """
        return Objective(
            teacher,
            self.schedule,
            self.conditions,
            self.config.changed(values),
            self.sample_shape,
            device=self.device,
            predict=self._predict,
            notes=self.notes,
            given=self._given,
        )

    def identity(self) -> dict[str, str]:
        """Digests of what a run depends on besides its configuration and its networks, by name."""
        given = {"noise schedule": self.schedule.identity(), **self._given()}
        return {name: digest_of(value) for name, value in given.items()}

    def own_teacher(self, *, weights: bool = True) -> nn.Module:
        """The teacher, apart from the original: whoever changes it needs one.

        Args:
            weights: They will change. False: only its blocks, so that the weights may be the
                original's.
        """
        if self.teacher is self.original:
            self.teacher = copy.deepcopy(self.original) if weights else alias(self.original)
            self._original_weights = not weights
        elif weights and self._original_weights:
            self.teacher = copy.deepcopy(self.teacher)
            self._original_weights = False
        return self.teacher

    def draw(self, random: IterationRandom, count: int) -> Draws:
        """Random numbers for `count` samples."""
        shape = (count, *self.sample_shape)
        noise, e = random.normal(shape, self.dtype), random.normal(shape, self.dtype)
        return Draws(e, random.integers(self.schedule.t_min, self.schedule.t_max, count), noise)

    def draw_every_step(self, random: IterationRandom, count: int) -> Noised:
        """Noise for `count` images, at any time step of the schedule."""
        noise = random.normal((count, *self.sample_shape), self.dtype)
        return Noised(noise, random.integers(0, self.schedule.usable, count))

    def sample(self, generator: nn.Module, noise: Tensor, condition: Tensor) -> Tensor:
        """x_g = G(n, c), (N, C, H, W)."""
        schedule, predict = self.schedule, self.predictors.generator
        return one_step_sample(
            generator, noise, schedule.t_init, condition, schedule, predict=predict
        )

    def denoising(
        self, network: nn.Module, x_g: Tensor, draws: Draws, labels: Conditions
    ) -> Tensor:
        """L_psi, (N,): a network's error at denoising the generator's images."""
        predict, told = self.predictors.training, labels.training
        return pseudo_score_loss(
            network, x_g, draws.e, draws.t, told, self.schedule, predict=predict
        )

    def score(
        self, networks: NetworkSet, x_g: Tensor, draws: Draws, labels: Conditions, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ell(c_phi, c_psi) per sample, and its gradient with respect to x_g.

        The backward passes through psi and phi run here, in the reverse order of their forward
        passes and each with that network's weights in place; the one through the generator is the
        caller's: `x_g.backward(gradient)`.

        Args:
            networks: phi and psi, whose parameters should not require gradients.
            x_g: (N, C, H, W) the generator's images; their graph is not touched.
            draws: The noise of x_t.
            labels: c_phi is c_r in the remain term, c_o in the forget term; c_psi is c_r and c_f.
            weight: (N,) weights of the samples in the sum that is differentiated.

        Returns:
            (N,) losses without their weights, and (N, C, H, W) the gradient of
            sum(weight * losses).
        """
        x_g, call, schedule, t = x_g.detach(), self.predictors, self.schedule, draws.t
        x_t = schedule.add_noise(x_g, draws.e, t).requires_grad_()
        of_psi = [call.difference] if call.residual is None else [call.difference, call.residual]
        phi = self._passes(networks, "teacher", [call.teacher], x_t, t, labels.teacher)
        psi = self._passes(networks, "pseudo_score", of_psi, x_t, t, labels.score)
        with torch.no_grad():
            p, s, *other = (schedule.denoised(x_t, eps, t) for eps in (*phi, *psi))
            r = other[0] if other else s
            losses, g_p, g_r = distillation_loss(p, s, r, x_g, self.config.alpha)
            del p, s, r, other
            scale = weight.view((-1,) + (1,) * (x_g.dim() - 1))
            g_p, g_r = scale * g_p, scale * g_r
            # p = (x_t - b eps_phi) / a, and s likewise: each score passes its gradient on directly
            # and through its network. x_t = a x_g + b e brings the factor a.
            a, b = schedule.coefficients(t, x_g)
            g_phi = [g_p / a]
            g_psi = [(g_r - g_p) / a] if len(psi) == 1 else [-g_p / a, g_r / a]
            total = g_phi[0] + sum(g_psi)
        backward: tuple[tuple[Role, list[Tensor], list[Tensor]], ...]
        backward = ("pseudo_score", psi, g_psi), ("teacher", phi, g_phi)
        for role, eps, upstream in backward:
            networks.use(role)
            total = total + torch.autograd.grad(eps, x_t, [-b * g for g in upstream])[0]
            eps.clear()  # and the graph with it
        return losses, a * total - g_r

    def one_step(
        self, networks: NetworkSet, x_g: Tensor, draws: Draws, labels: Conditions, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """||x_g - G_0(n, c_phi)||^2 per sample, and its gradient: keeps and redirects the one step.

        As `score`; G_0 is the generator as the run began, told c_o for c_f.
        """
        with torch.no_grad():
            x_start = self.sample(networks.use("start"), draws.noise, labels.redirected)
        difference = x_g.detach() - x_start
        scale = (self.config.generator.one_step * weight).view((-1,) + (1,) * (x_g.dim() - 1))
        return difference.square().flatten(1).sum(1), 2 * scale * difference

    def every_step(
        self, networks: NetworkSet, x_g: Tensor, noised: Noised, labels: Conditions
    ) -> Tensor:
        """||eps_theta(x_t, t, c) - eps_phi(x_t, t, c_phi)||^2 per sample: redirects many steps.

        Where c is c_f, c_phi is c_o; elsewhere they are the same. SalUn's loss on another label,
        with the teacher's prediction and on the generator's images. Rests with theta's weights in
        place.
        """
        t, predict = noised.t, self.predictors.generator
        x_t = self.schedule.add_noise(x_g.detach(), noised.e, t)
        with torch.no_grad():
            target = predict(networks.use("teacher"), x_t, t, labels.at_every_step)
        predicted = predict(networks.use("generator"), x_t, t, labels.of_samples)
        return self.schedule.weighted((predicted - target).square().flatten(1).sum(1), t)

    def _passes(
        self,
        networks: NetworkSet,
        role: Role,
        calls: Sequence[NoisePredictor],
        x_t: Tensor,
        t: Tensor,
        condition: Tensor,
    ) -> list[Tensor]:
        """What a network predicts of x_t, called in each of these ways; differentiable.

        With `recompute` no graph is kept: the backward pass computes it again.
        """

        def forward(predict: NoisePredictor) -> Tensor:
            return predict(networks.use(role), x_t, t, condition)

        # What is guided apart keeps no activations as it is.
        apart = all(isinstance(each, Guided) and each.apart for each in calls)
        if apart or not self.config.recompute:
            return [forward(each) for each in calls]
        return [computed_again(forward, each, draws=networks.use(role)) for each in calls]
