"""One iteration: what is drawn for it, and the two phases that run on the device.

    labels, noise ~ (seed, iteration)
    psi   <- AdamW,  d/dpsi    sum w L_psi(x_g)            x_g = G_theta(n, c), held constant
    theta <- AdamW,  d/dtheta  sum w (ell + one_step + every)        fresh noise, masked
    average <- decay average + (1 - decay) theta

The phases take everything that is random from `IterationInputs`, so they can be captured in a CUDA
graph once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.losses import term_weights
from pecker_fast.distill.network_set import NetworkSet
from pecker_fast.distill.objective import Draws, Noised, Objective
from pecker_fast.distributed import Ranks
from pecker_fast.nn.recomputing import computed_again
from pecker_fast.runs.ema import SalientEma
from pecker_fast.runs.learner import Learner
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

__all__ = ["Iteration", "IterationInputs"]


@dataclass(frozen=True)
class IterationInputs(Rows):
    """What differs from one iteration to the next: 2B samples, the remain half first."""

    labels: Conditions  # what the networks are told
    pseudo_score: Draws  # of its phase
    generator: Draws
    every_step: Noised | None = None  # of the term over all time steps, where there is one


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
        """`networks` rest with the generator's weights in place; `ema` follows the generator.

        The `ranks` share the batch; None: this process has all of it.
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
            losses += self._pseudo_score_phase(inputs)
        losses += self._generator_phase(inputs)
        if self._ema is not None:
            self._ema.update()
        return tuple(losses)

    def _pseudo_score_phase(self, inputs: IterationInputs) -> list[Tensor]:
        """The pseudo-score network learns to denoise the generator's present samples."""
        objective, networks, section = self._objective, self._networks, self._config.pseudo_score
        weight = self._weights(section.lambda_remain, section.lambda_forget, inputs)

        def learn(rows: slice, is_last: bool) -> list[Tensor]:
            draws, labels = inputs.pseudo_score[rows], inputs.labels[rows]
            if is_last:
                self._psi.before_last_backward()
            with torch.no_grad():
                x_g = objective.sample(networks.use("generator"), draws.noise, labels.of_samples)
            loss = objective.denoising(networks.use("pseudo_score"), x_g, draws, labels)
            (weight[rows] * loss).sum().backward()  # type: ignore[no-untyped-call]
            return [loss.detach()]

        return self._stepped(self._psi, learn)

    def _generator_phase(self, inputs: IterationInputs) -> list[Tensor]:
        """The generator learns from teacher and pseudo-score: same labels, fresh noise."""
        objective, networks, section = self._objective, self._networks, self._config.generator
        remain, forget = section.lambda_remain, section.lambda_forget
        weight = self._weights(remain, forget, inputs)
        weight_of_steps = self._weights(remain, section.every_step_forget * forget, inputs)

        def learn(rows: slice, is_last: bool) -> list[Tensor]:
            draws, labels = inputs.generator[rows], inputs.labels[rows]
            x_g = self._drawn(draws, labels)
            losses, gradients = [], []
            for wanted, term in (
                (section.scores, objective.score),
                (section.one_step > 0, objective.one_step),
            ):
                if wanted:
                    loss, gradient = term(networks, x_g, draws, labels, weight[rows])
                    losses.append(loss)
                    gradients.append(gradient)
            networks.use("generator")
            if is_last and inputs.every_step is None:
                self._theta.before_last_backward()
            if gradients:
                x_g.backward(sum(gradients))  # type: ignore[no-untyped-call]
            if inputs.every_step is not None:
                if is_last:
                    self._theta.before_last_backward()
                loss = objective.every_step(networks, x_g, inputs.every_step[rows], labels)
                scaled = section.every_step * weight_of_steps[rows] * loss
                scaled.sum().backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
            return losses

        return self._stepped(self._theta, learn)

    def _drawn(self, draws: Draws, labels: Conditions) -> Tensor:
        """The generator's images, differentiable where a term looks at them."""
        generator, section = self._networks.use("generator"), self._config.generator
        inputs = generator, draws.noise, labels.student
        with torch.set_grad_enabled(section.scores or section.one_step > 0):
            # Computed again its dropout would be another: then the graph is kept.
            if self._config.recompute and not _draws_dropout(generator):
                images: Tensor = computed_again(self._objective.sample, *inputs, draws=generator)
                return images
            return self._objective.sample(*inputs)

    def _stepped(
        self, learner: Learner, learn: Callable[[slice, bool], list[Tensor]]
    ) -> list[Tensor]:
        """One optimizer step over this process's samples, as many at a time as `micro_batch` says.

        `learn` takes the rows, and whether they are the last, and returns the losses of each term.
        """
        count = len(self._rows)
        at_once = self._config.micro_batch or count
        learner.learn()
        losses = [
            learn(slice(first, first + at_once), first + at_once >= count)
            for first in range(0, count, at_once)
        ]
        learner.step()
        learner.rest()
        return [torch.cat(each) for each in zip(*losses, strict=True)]

    def _weights(self, remain: float, forget: float, inputs: IterationInputs) -> Tensor:
        """Of each sample in the sum that is differentiated, (2B,)."""
        like, of_sample = inputs.generator.e, inputs.labels.weight
        size = self._config.batch_size
        weight = term_weights(remain, forget, size, like)[: size * self._config.halves]
        if not self._ranks.alone:
            weight = weight[self._rows]
        return weight if of_sample is None else weight * of_sample


def _draws_dropout(network: nn.Module) -> bool:
    kinds = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout
    return any(
        isinstance(module, kinds) and module.training and module.p > 0
        for module in network.modules()
    )
