"""One iteration: what is drawn for it, and the two phases that run on the device.

labels and noise -> pseudo-score step -> generator step -> average. The phases take everything that
is random from `IterationInputs`, so they can be captured in a CUDA graph once and replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.config import NetworkSection
from pecker_fast.distill.losses import term_weights
from pecker_fast.distill.network_set import NetworkSet
from pecker_fast.distill.objective import Draws, Noised, Objective
from pecker_fast.distributed import Ranks
from pecker_fast.runs.ema import SalientEma
from pecker_fast.runs.learner import Learner
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

__all__ = ["Iteration", "IterationInputs"]


@dataclass(frozen=True)
class IterationInputs(Rows):
    """What differs from one iteration to the next: 2B samples, the remain half first.

    Attributes:
        labels: What the networks are told.
        pseudo_score: Noise and time steps of the pseudo-score phase.
        generator: Those of the generator phase.
        every_step: Noise of the term over all time steps, where there is one.
    """

    labels: Conditions
    pseudo_score: Draws
    generator: Draws
    every_step: Noised | None = None


_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Iteration:
    """Both phases, for one set of networks and their optimizers."""

    def __init__(
        self,
        objective: Objective,
        networks: NetworkSet,
        pseudo_score: Learner,
        generator: Learner,
        ema: SalientEma | None,
        ranks: Ranks | None = None,
    ) -> None:
        """Keep them.

        Args:
            objective: What the losses are made of, and the configuration.
            networks: Says whose weights are in place. Rests with the generator's.
            pseudo_score: Steps psi.
            generator: Steps theta.
            ema: Follows theta. None: nothing is averaged.
            ranks: The processes that share the batch. None = this one has all of it.
        """
        self._objective = objective
        self._config = objective.config
        self._networks = networks
        self._psi = pseudo_score
        self._theta = generator
        self._ema = ema
        self._ranks = ranks or Ranks()
        size = objective.config.batch_size
        # Each process has a part of the remain half and the same part of the forget half.
        part = torch.arange(size)[self._ranks.rows(size)]
        halves = [half * size + part for half in range(self._config.halves)]
        self._rows = torch.cat(halves).to(objective.device)

    def draw(self, random: IterationRandom) -> IterationInputs:
        """Labels and noise of one iteration: of the whole batch, of which a process keeps its rows.

        So the batch does not depend on how many there are.
        """
        objective = self._objective
        labels = objective.conditions.draw(self._config.batch_size, random)
        count = len(labels)
        pseudo_score, generator = objective.draw(random, count), objective.draw(random, count)
        every_step = None
        if self._config.generator.every_step:
            every_step = objective.draw_every_step(random, count)
        inputs = IterationInputs(labels, pseudo_score, generator, every_step)
        return inputs if self._ranks.alone else inputs[self._rows]

    def compute(self, inputs: IterationInputs) -> tuple[Tensor, ...]:
        """Two optimizer steps, one without scores; the losses of each term, (2B,): `LOSS_NAMES`."""
        losses = []
        if self._config.generator.scores:
            losses.append(self._pseudo_score_phase(inputs))
        losses += self._generator_phase(inputs)
        if self._ema is not None:
            self._ema.update()
        return tuple(losses)

    def _pseudo_score_phase(self, inputs: IterationInputs) -> Tensor:
        """The pseudo-score network learns to denoise the generator's present samples."""
        objective = self._objective
        weight = self._weights(self._config.pseudo_score, inputs)
        self._psi.learn()
        losses = []
        for rows in self._slices():
            if rows.stop >= len(self._rows):
                self._psi.before_last_backward()
            draws, labels = inputs.pseudo_score[rows], inputs.labels[rows]
            with torch.no_grad():
                generator = self._networks.use("generator")
                x_g = objective.sample(generator, draws.noise, labels.of_samples)
            psi = self._networks.use("pseudo_score")
            loss = objective.denoising(psi, x_g, draws, labels)
            (weight[rows] * loss).sum().backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._psi.step()
        self._psi.rest()
        return torch.cat(losses)

    def _generator_phase(self, inputs: IterationInputs) -> list[Tensor]:
        """The generator learns from teacher and pseudo-score: same labels, fresh noise."""
        section = self._config.generator
        weight = self._weights(section, inputs)
        self._theta.learn()
        losses: list[list[Tensor]] = []
        for rows in self._slices():
            is_last = rows.stop >= len(self._rows)
            if is_last and inputs.every_step is None:
                self._theta.before_last_backward()
            labels = inputs.labels[rows]
            x_g, of_terms = self._learn_one_step(inputs.generator[rows], labels, weight[rows])
            if inputs.every_step is not None:
                if is_last:
                    self._theta.before_last_backward()
                noised = inputs.every_step[rows]
                loss = self._objective.every_step(self._networks, x_g, noised, labels)
                at_every_step = self._weights(section, inputs, section.every_step_forget)[rows]
                scaled = section.every_step * at_every_step * loss
                scaled.sum().backward()  # type: ignore[no-untyped-call]
                of_terms.append(loss.detach())
            losses.append(of_terms)
        self._theta.step()
        self._theta.rest()
        return [torch.cat(each) for each in zip(*losses, strict=True)]

    def _learn_one_step(
        self, draws: Draws, labels: Conditions, weight: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The backward pass of the terms that look at the generator's images.

        Returns:
            The images, and the losses of each term.
        """
        objective, section = self._objective, self._config.generator
        generator = self._networks.use("generator")
        # A second pass would draw other dropout: then the first one's graph is kept.
        again = self._config.recompute and not _draws_dropout(generator)
        looked_at = section.scores or section.one_step > 0
        with torch.set_grad_enabled(looked_at and not again):
            x_g = objective.sample(generator, draws.noise, labels.student)
        losses: list[Tensor] = []
        gradient = None
        if section.scores:
            loss, gradient = objective.score(self._networks, x_g, draws, labels, weight)
            losses.append(loss)
        if section.one_step:
            loss, through = objective.one_step(self._networks, x_g, draws, labels, weight)
            gradient = through if gradient is None else gradient + through
            losses.append(loss)
        self._networks.use("generator")
        if gradient is not None:
            if again:
                x_g = objective.sample(generator, draws.noise, labels.student)
            x_g.backward(gradient)  # type: ignore[no-untyped-call]
        return x_g, losses

    def _weights(
        self, section: NetworkSection, inputs: IterationInputs, forget: float = 1.0
    ) -> Tensor:
        """Of each sample; those of the forget term times `forget`."""
        like, of_sample = inputs.generator.e, inputs.labels.weight
        size = self._config.batch_size
        weight = term_weights(section.lambda_remain, forget * section.lambda_forget, size, like)
        weight = weight[: size * self._config.halves]
        if not self._ranks.alone:
            weight = weight[self._rows]
        return weight if of_sample is None else weight * of_sample

    def _slices(self) -> list[slice]:
        """Rows of this process's samples that pass through the networks together."""
        rows = len(self._rows)
        step = self._config.micro_batch or rows
        return [slice(first, first + step) for first in range(0, rows, step)]


def _draws_dropout(network: nn.Module) -> bool:
    return any(
        isinstance(module, _DROPOUT) and module.training and module.p > 0
        for module in network.modules()
    )
