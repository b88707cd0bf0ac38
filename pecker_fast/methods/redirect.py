"""Redirecting: what was forgotten is drawn as its override, in many steps as before. No data.

    forget term    || eps(x_t, t, c_f) - eps_0(x_t, t, c_o) ||^2
    remain term    || eps(x_t, t, c_r) - eps_0(x_t, t, c_r) ||^2

eps_0 is the original network and c_o what takes the place of c_f: classes, or prompts; sums run
over C, H, W. The x_t are what the network that learns meets as it draws: DDIM from noise under c_f
or c_r, one pass of the loss at each step. Its own prediction there is also the next step, so that
samples cost nothing. All time steps of an image are moved by one random offset: together they cover
the schedule evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.distill.conditions import RANDOM_OVERRIDE, ClassConditions
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.masks.scores import LossFn
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.objective import MethodObjective, Term
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["RedirectObjective", "drawn_states"]


@dataclass(frozen=True)
class Drawing(Rows):
    """N images about to be drawn, on the run's device.

    Attributes:
        noise: (N, C, H, W) where they start.
        offset: (N,) int64, of `drawn_states`.
        told: (N, ...) what the network that learns is told.
        original: (N, ...) what the original network is told.
        weight: (N,) factors of their losses. None: 1.
    """

    noise: Tensor
    offset: Tensor
    told: Tensor
    original: Tensor
    weight: Tensor | None = None


def drawn_states(
    noise: Tensor,
    offset: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    predict: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The states of DDIM, eta 0, from the first to the last.

    Args:
        noise: (N, C, H, W) where the images start.
        offset: (N,) int64 by how much their time steps are moved: 0 .. T / steps - 1.
        schedule: The noise schedule, of T time steps.
        steps: K; step k of K - 1 .. 0 is at time step k * (T // K) + offset, T those with a signal.
        predict: (x_t, t) -> the noise in x_t, called once a step. No gradient goes from one step to
            another.

    Yields:
        x_t (N, C, H, W), t (N,) int64, and what was predicted of them.
    """
    x, gap = noise, schedule.usable // steps
    if schedule.flow:  # there is an image's share in it from the second time step on
        x = schedule.coefficients((steps - 1) * gap + offset, x)[1] * x
    for step in reversed(range(steps)):
        t = step * gap + offset
        predicted = predict(x, t)
        yield x, t, predicted
        if step:
            found = predicted.detach()
            x = schedule.add_noise(schedule.denoised(x, found, t), found, t - gap)


class RedirectObjective(MethodObjective[Drawing]):
    """Both terms, on images that the network draws itself.

    Attributes:
        conditions: Draw what the networks are told.
    """

    reduction = "retain_aware"
    clip_saliency = None

    def __init__(
        self,
        model: ModelFolder | PipelineFolder,
        config: BaselineConfig,
        device: torch.device | None = None,
    ) -> None:
        """As `MethodObjective`.

        Raises:
            PeckerError: No override, a class that the model does not have, prompts that cannot be
                used, or more steps than its schedule has.
        """
        super().__init__(model, config, device)
        if config.steps > self.schedule.usable:
            raise PeckerError(
                f"steps {config.steps}: at most the {self.schedule.usable} time steps of "
                "the model's schedule"
            )
        self.frozen = self.look_up()
        self.terms = ["remain", "forget"]
        self.passes = config.steps
        self.conditions: ClassConditions | TextConditions
        self._null: int | None = None  # the label of no class
        if isinstance(model, PipelineFolder):
            prompts = TextConditions.of_pipeline(model, config.text, config.seed, self.device)
            self.conditions, self.pairs = prompts, ()
            self.notes = prompts.cut_off(model)
            self._about = partial(prompts.about, model)
            return
        if config.override is None:
            raise PeckerError(
                "method redirect: the class to forget is drawn as another one; give --override"
            )
        names = model.class_names
        self.conditions = ClassConditions(config.forget, config.override, len(names), names)
        self._null = model.null_label
        self.pairs = self.conditions.pairs
        # What was used, not how it was said; a single one as such.
        gone = [forget for forget, _ in self.pairs]
        instead = [RANDOM_OVERRIDE if to is None else to for _, to in self.pairs]
        used: dict[str, Any] = {"forget": gone, "override": instead}
        if len(gone) == 1:
            used = {"forget": gone[0], "override": instead[0]}
        self.config = config.model_copy(update=used)

    def batches(self, random: IterationRandom) -> list[Drawing]:
        """Images to keep, then images to forget."""
        return self._drawings(self.config.batch_size, random)

    def weight(self, term: Term) -> float:
        """Its lambda, shared by the steps."""
        return super().weight(term) / self.config.steps

    def losses_by_pass(
        self, network: nn.Module, batches: Sequence[Drawing]
    ) -> Iterator[dict[Term, Tensor]]:
        """One step of DDIM after the other, the images of both terms in one batch."""
        remain, forget = batches
        both = zip(remain.tensors(), forget.tensors(), strict=True)
        drawing = remain.with_tensors([torch.cat(pair) for pair in both])
        for losses in self._losses(network, drawing):
            yield {"remain": losses[: len(remain)], "forget": losses[len(remain) :]}

    def saliency(
        self, network: nn.Module, random: IterationRandom
    ) -> tuple[int, Iterator[LossFn], Iterator[LossFn]]:
        """The forget term's, a gradient a step; what is kept: how predictions of it depend.

        At the original weights the remain term has no gradient. That of its predictions' product
        with random noise has the same squares as its curvature, the Gauss-Newton matrix's diagonal.
        """
        section, steps = self.config.saliency, self.config.steps

        def of_forget(drawing: Drawing) -> Iterator[Tensor]:
            return (losses.mean() for losses in self._losses(network, drawing))

        def of_remain(drawing: Drawing) -> Iterator[Tensor]:
            for _, _, predicted in self._states(network, drawing):
                noise = random.normal(tuple(predicted.shape), predicted.dtype)
                yield (predicted * noise).flatten(1).sum(1).mean()

        def scalars(half: int, of: Callable[[Drawing], Iterator[Tensor]]) -> Iterator[LossFn]:
            for _ in range(section.batches):
                found = of(self._drawings(section.batch_size, random)[half])
                for _ in range(steps):
                    yield partial(next, found)

        return section.batches * steps, scalars(1, of_forget), scalars(0, of_remain)

    def _states(
        self, network: nn.Module, drawing: Drawing
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return self._predict(network, x_t, t, drawing.told)

        steps = self.config.steps
        return drawn_states(drawing.noise, drawing.offset, self.schedule, steps, predict)

    def _losses(self, network: nn.Module, drawing: Drawing) -> Iterator[Tensor]:
        """(N,) at each step."""
        assert self.frozen is not None  # `__init__` has looked it up
        for x_t, t, predicted in self._states(network, drawing):
            with torch.no_grad():
                target = self._predict(self.frozen, x_t, t, drawing.original)
            losses = (predicted - target).square().flatten(1).sum(1)
            yield losses if drawing.weight is None else losses * drawing.weight

    def _drawings(self, count: int, random: IterationRandom) -> list[Drawing]:
        """`count` images to keep, and as many to forget."""
        drawn = self.conditions.draw(count, random)
        told, original = drawn.of_samples, drawn.at_every_step
        null, drop = self._null, self.config.label_dropout
        if null is not None and drop > 0:
            # Of the images to keep: guidance asks what the network makes of no class. Prompts are
            # dropped as they are drawn.
            none = random.coins(2 * count, drop)
            none[count:] = False
            told, original = told.masked_fill(none, null), original.masked_fill(none, null)
        shape = (2 * count, *self._model.network_shape)
        gap = self.schedule.usable // self.config.steps
        noise, offset = random.normal(shape, self.dtype), random.integers(0, gap, 2 * count)
        both = Drawing(noise, offset, told, original, drawn.weight)
        return [both[:count], both[count:]]
