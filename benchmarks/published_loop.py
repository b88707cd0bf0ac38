"""Score forgetting distillation as it is published, written down plainly: what speed-ups are over.

Remain and forget term in turn, each with its own passes and its own noise; autograd through the
whole loss; torch's Adam as it comes; `grad *= mask` on the generator; an average of every weight,
tensor by tensor; every loss read at once. It shares the noise schedule and the call of a network
with `pecker_fast.distill`, no loss and no loop, so it is also what the trainer is checked against.

Two things differ from what is published: labels are drawn instead of taken from images that nobody
looks at, and prompts are embeddings that are there already (see networks.py).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pecker_fast.distill import Objective
from pecker_fast.runs.randomness import TRAINING, IterationRandom


class Term(NamedTuple):
    """What one term sees in one phase, for B samples."""

    noise: Tensor  # (B, C, H, W) the generator's input
    e: Tensor  # (B, C, H, W) the noise that is added to its images
    t: Tensor  # (B,) int64, how much of it
    label: Tensor  # (B,) int64, what the generator and the pseudo-score are told
    teacher_label: Tensor  # (B,) int64, what the teacher is told: the override, of the forget term


class PublishedAdam(torch.optim.Adam):
    """Clamp every gradient entry, multiply by the mask, and take a step of torch's default Adam."""

    def __init__(self, network: nn.Module, mask: Any, lr: float, options: Any) -> None:
        """Of all parameters of `network`; a mask of None is no mask."""
        betas = options.beta1, options.beta2
        super().__init__(network.parameters(), lr, betas, options.eps)
        dense = {} if mask is None else mask.to_dense()
        self._pairs = [
            (param, dense[name].to(param.device) if dense else None)
            for name, param in network.named_parameters()
        ]
        self._clip_value = options.clip_value

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        for param, mask in self._pairs:
            if param.grad is None:
                continue
            if self._clip_value is not None:
                param.grad.clamp_(-self._clip_value, self._clip_value)
            if mask is not None:
                param.grad *= mask
        super().step()


class PublishedLoop:
    """The loop with its three networks.

    Attributes:
        generator: theta.
        pseudo_score: psi.
    """

    def __init__(
        self,
        objective: Objective,
        mask: Any,
        make_optimizer: Callable[[nn.Module, Any, float], torch.optim.Optimizer],
    ) -> None:
        """Copy the teacher twice and make both optimizers, each of (network, its mask, lr)."""
        self._objective, config = objective, objective.config
        self._teacher = objective.teacher.eval().requires_grad_(False)
        self.generator = copy.deepcopy(self._teacher).requires_grad_(True)
        self.pseudo_score = copy.deepcopy(self.generator)
        self._average = None if config.ema.decay is None else copy.deepcopy(self._teacher)
        masked = mask if config.mask.apply == "both" else None
        self._psi = make_optimizer(self.pseudo_score, masked, config.pseudo_score.lr)
        self._theta = make_optimizer(self.generator, mask, config.generator.lr)

    def run(self) -> Iterator[dict[str, float]]:
        """Iterate without end, on the random numbers of the trainer.

        Yields:
            The four losses of each iteration, means over their samples, without their weights.
        """
        objective, config = self._objective, self._objective.config
        for iteration in itertools.count():
            random = IterationRandom(config.seed, iteration, objective.device, TRAINING)
            labels = objective.conditions.draw(config.batch_size, random)
            psi_terms, theta_terms = (self._terms(random, labels) for _ in range(2))
            self._rest(self.generator, self.pseudo_score)
            losses = self._step("pseudo_score", self._psi, self._pseudo_score_loss, psi_terms)
            self._rest(self.pseudo_score, self.generator)
            losses |= self._step("generator", self._theta, self._generator_loss, theta_terms)
            if self._average is not None:
                decay = config.ema.decay
                pairs = zip(self._average.parameters(), self.generator.parameters(), strict=True)
                with torch.no_grad():
                    for average, param in pairs:
                        average.mul_(decay).add_(param, alpha=1 - decay)
            yield losses

    def ema_generator(self) -> nn.Module | None:
        """The average of theta's weights; None where the recipe has none."""
        return self._average

    def _terms(self, random: IterationRandom, labels: Any) -> list[Term]:
        """The remain and the forget term of a phase, which are one batch of the trainer."""
        size = self._objective.config.batch_size
        draws = self._objective.draw(random, 2 * size)
        parts = (draws.noise, draws.e, draws.t, labels.student, labels.teacher)
        return [Term(*halves) for halves in zip(*(part.split(size) for part in parts), strict=True)]

    @staticmethod
    def _rest(resting: nn.Module, network: nn.Module) -> None:
        resting.eval().requires_grad_(False)
        network.train().requires_grad_(True)

    def _step(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Term], Tensor],
        terms: list[Term],
    ) -> dict[str, float]:
        optimizer.zero_grad()
        section = getattr(self._objective.config, name)
        losses = {}
        weights = {"remain": section.lambda_remain, "forget": section.lambda_forget}
        for (half, weight), term in zip(weights.items(), terms, strict=True):
            loss = loss_of(term)
            (weight * loss).backward()
            losses[f"{name}/{half}"] = loss.item()
        optimizer.step()
        return losses

    def _pseudo_score_loss(self, term: Term) -> Tensor:
        with torch.no_grad():
            _, x_t = self._generate(term)
        eps = self._objective.predictors.training(self.pseudo_score, x_t, term.t, term.label)
        return (term.e - eps).square().sum(dim=(1, 2, 3)).mean()

    def _generator_loss(self, term: Term) -> Tensor:
        x_g, x_t = self._generate(term)
        schedule, predict = self._objective.schedule, self._objective.predictors.teacher
        s = predict(self.pseudo_score, x_t, term.t, term.label)
        p = predict(self._teacher, x_t, term.t, term.teacher_label)
        s, p = (schedule.denoised(x_t, eps, term.t) for eps in (s, p))
        omega = (p - x_g).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-5)
        values = (p - s) * ((p - x_g) - self._objective.config.alpha * (p - s)) / omega
        return values.sum(dim=(1, 2, 3)).mean()

    def _generate(self, term: Term) -> tuple[Tensor, Tensor]:
        """x_g of the generator, and x_t = a x_g + b e."""
        x_g = self._objective.sample(self.generator, term.noise, term.label)
        a, b = self._objective.schedule.coefficients(term.t, x_g)
        return x_g, a * x_g + b * term.e
