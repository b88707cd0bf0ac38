"""Score forgetting distillation as it is published, written down plainly: what speed-ups are over.

Remain and forget term in turn, each with its own passes and its own noise; autograd through the
whole loss; torch's Adam as it comes; `grad *= mask` on the generator; an average of every weight,
tensor by tensor; every loss read at once. It shares no code with `pecker_fast.distill`, so it is
also what the trainer is checked against.

Two things differ from what is published: labels are drawn instead of taken from images that nobody
looks at, and prompts are embeddings that are there already (see networks.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Phases", "PublishedAdam", "PublishedLoop", "Term"]


@dataclass(frozen=True)
class Term:
    """What one term sees in one phase, for B samples."""

    noise: Tensor  # (B, C, H, W) the generator's input
    e: Tensor  # (B, C, H, W) the noise that is added to its images
    t: Tensor  # (B,) int64, how much of it
    label: Tensor  # (B,) int64, what the generator and the pseudo-score are told
    teacher_label: Tensor  # (B,) int64, what the teacher is told: the override, of the forget term


Phases = tuple[tuple[Term, Term], tuple[Term, Term]]
"""Remain and forget term of the pseudo-score's phase, then of the generator's."""


class PublishedAdam(torch.optim.Adam):
    """Clamp every gradient entry, multiply by the mask, and take a step of torch's default Adam.

    Attributes:
        masks: bool by parameter name; empty without a mask.
    """

    def __init__(self, network: nn.Module, mask: Any, lr: float, options: Any) -> None:
        """Of all parameters of `network`."""
        super().__init__(
            network.parameters(), lr, betas=(options.beta1, options.beta2), eps=options.eps
        )
        self._named = dict(network.named_parameters())
        device = next(network.parameters()).device
        dense = {} if mask is None else mask.to_dense()
        self.masks = {name: one.to(device) for name, one in dense.items()}
        self._clip_value = options.clip_value

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        for name, param in self._named.items():
            if param.grad is None:
                continue
            if self._clip_value is not None:
                param.grad.clamp_(-self._clip_value, self._clip_value)
            if self.masks:
                param.grad *= self.masks[name]
        super().step()


class PublishedLoop:
    """The loop with its three networks.

    Attributes:
        generator: theta.
        pseudo_score: psi.
        average: the average of theta's weights; None where the recipe has none.
        optimizers: psi's and theta's.
    """

    def __init__(
        self,
        objective: Any,
        described: Any,
        mask: Any,
        make_optimizer: Callable[[nn.Module, Any, float], torch.optim.Optimizer],
    ) -> None:
        """Copy the teacher twice and make both optimizers, each of (network, its mask, lr)."""
        config, teacher = objective.config, objective.teacher
        schedule = objective.schedule
        self.generator = copy.deepcopy(teacher).requires_grad_(True)
        self.pseudo_score = copy.deepcopy(teacher).requires_grad_(True)
        self.average = None if config.ema.decay is None else copy.deepcopy(teacher)
        self._teacher = teacher.eval().requires_grad_(False)
        self._config = config
        self._start, self._times = schedule.t_init, (schedule.t_min, schedule.t_max)
        self._shape = described.network.sample_shape
        self._classes = described.conditions
        self._device = next(teacher.parameters()).device
        self._a = schedule.signal.to(self._device, torch.float32)
        self._b = schedule.noise.to(self._device, torch.float32)
        self._predict = described.predictors(config, self._device)
        masked = mask if config.mask.apply == "both" else None
        self.optimizers = (
            make_optimizer(self.pseudo_score, masked, config.pseudo_score.lr),
            make_optimizer(self.generator, mask, config.generator.lr),
        )

    def run(self, drawn: Iterable[Phases] | None = None) -> Iterator[dict[str, float]]:
        """Iterate on random numbers, without end on numbers of its own.

        Yields:
            The four losses of each iteration, means over their samples, without their weights.
        """
        for pseudo_score_terms, generator_terms in drawn or self._draw():
            losses = self._phase("pseudo_score", pseudo_score_terms)
            losses |= self._phase("generator", generator_terms)
            if self.average is not None:
                decay = self._config.ema.decay
                with torch.no_grad(), torch.profiler.record_function("weight average"):
                    pairs = zip(self.average.parameters(), self.generator.parameters(), strict=True)
                    for average, param in pairs:
                        average.mul_(decay).add_(param, alpha=1 - decay)
            yield losses

    def ema_generator(self) -> nn.Module | None:
        """The average, as the trainer calls it."""
        return self.average

    def _phase(self, name: str, terms: tuple[Term, Term]) -> dict[str, float]:
        """One of the two networks takes a step, while the other rests."""
        psi, theta = self.optimizers
        if name == "pseudo_score":
            network, resting, optimizer = self.pseudo_score, self.generator, psi
            loss_of = self._pseudo_score_loss
        else:
            network, resting, optimizer = self.generator, self.pseudo_score, theta
            loss_of = self._generator_loss
        resting.eval().requires_grad_(False)
        network.train().requires_grad_(True)
        optimizer.zero_grad()
        section = getattr(self._config, name)
        losses = {}
        weights = {"remain": section.lambda_remain, "forget": section.lambda_forget}
        for (half, weight), term in zip(weights.items(), terms, strict=True):
            loss = loss_of(term)
            (weight * loss).backward()
            losses[f"{name}/{half}"] = self._read(loss)
        optimizer.step()
        return losses

    def _pseudo_score_loss(self, term: Term) -> Tensor:
        with torch.no_grad():
            x_g = self._generate(term)
        x_t = self._add_noise(x_g, term)
        eps = self._eps(self.pseudo_score, x_t, term.t, term.label)
        return (term.e - eps).square().sum(dim=(1, 2, 3)).mean()

    def _generator_loss(self, term: Term) -> Tensor:
        x_g = self._generate(term)
        x_t = self._add_noise(x_g, term)
        s = self._denoise(self.pseudo_score, x_t, term.t, term.label)
        p = self._denoise(self._teacher, x_t, term.t, term.teacher_label)
        omega = (p - x_g).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-5)
        values = (p - s) * ((p - x_g) - self._config.alpha * (p - s)) / omega
        return values.sum(dim=(1, 2, 3)).mean()

    def _read(self, loss: Tensor) -> float:
        return loss.item()

    # ---- one-step generation, noise, denoised means

    def _generate(self, term: Term) -> Tensor:
        """x_g = (z - b eps(z)) / a at t_init, where z = b n."""
        t = torch.full((len(term.noise),), self._start, device=self._device)
        a, b = self._coefficients(t)
        z = b * term.noise
        with self._autocast():
            eps = self._predict.generator(self.generator, z, t, term.label)
        return (z - b * eps.float()) / a

    def _add_noise(self, x: Tensor, term: Term) -> Tensor:
        a, b = self._coefficients(term.t)
        return a * x + b * term.e

    def _denoise(self, network: nn.Module, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        a, b = self._coefficients(t)
        return (x_t - b * self._eps(network, x_t, t, label)) / a

    def _eps(self, network: nn.Module, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        with self._autocast():
            return self._predict.teacher(network, x_t, t, label).float()

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._a[t].view(-1, 1, 1, 1), self._b[t].view(-1, 1, 1, 1)

    def _autocast(self) -> Any:
        if self._config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    # ---- random numbers

    def _draw(self) -> Iterator[Phases]:
        size, classes = self._config.batch_size, self._classes
        ((gone, instead),) = classes.pairs
        while True:
            kept = torch.randint(classes.num_classes - 1, (size,), device=self._device)
            remain = kept + (kept >= gone)
            forget = torch.full_like(remain, gone)
            override = torch.full_like(remain, instead)
            pairs = ((remain, remain), (forget, override))
            pseudo_score, generator = (
                tuple(self._term(*labels) for labels in pairs) for _ in range(2)
            )
            yield pseudo_score, generator

    def _term(self, label: Tensor, teacher_label: Tensor) -> Term:
        shape = (len(label), *self._shape)
        noise, e = (torch.randn(shape, device=self._device) for _ in range(2))
        t = torch.randint(*self._times, shape[:1], device=self._device)
        return Term(noise, e, t, label, teacher_label)
