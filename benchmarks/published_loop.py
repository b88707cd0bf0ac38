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
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PublishedAdam", "PublishedDraws", "PublishedLoop", "TermDraws"]

Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(network, x_t, t, condition) -> predicted noise."""


@dataclass(frozen=True)
class TermDraws:
    """The random numbers of one term in one phase, for B samples.

    Attributes:
        noise: (B, C, H, W) the generator's input.
        e: (B, C, H, W) the noise that is added to its images.
        t: (B,) int64, how much of it.
    """

    noise: Tensor
    e: Tensor
    t: Tensor


@dataclass(frozen=True)
class PublishedDraws:
    """All random numbers of an iteration.

    Attributes:
        remain: (B,) int64 labels to keep.
        forget: (B,) int64, the label to forget.
        override: (B,) int64, the label in its place.
        pseudo_score: of the pseudo-score phase: remain term, forget term.
        generator: of the generator phase: remain term, forget term.
    """

    remain: Tensor
    forget: Tensor
    override: Tensor
    pseudo_score: tuple[TermDraws, TermDraws]
    generator: tuple[TermDraws, TermDraws]


class PublishedAdam(torch.optim.Adam):
    """Clamp every gradient entry, multiply by the mask, and take a step of torch's default Adam."""

    def __init__(
        self,
        network: nn.Module,
        masks: Mapping[str, Tensor] | None,
        lr: float,
        config: Any,
    ) -> None:
        """Of all parameters of `network`.

        Args:
            network: what learns.
            masks: name -> bool, which entries may change. None: all.
            lr: learning rate.
            config: a `PeckerConfig`; its `optimizer` section counts.
        """
        options = config.optimizer
        super().__init__(
            network.parameters(), lr, betas=(options.beta1, options.beta2), eps=options.eps
        )
        self._named = dict(network.named_parameters())
        self._masks = masks
        self._clip_value = options.clip_value

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        for name, param in self._named.items():
            if param.grad is None:
                continue
            if self._clip_value is not None:
                param.grad.clamp_(-self._clip_value, self._clip_value)
            if self._masks is not None:
                param.grad *= self._masks[name]
        super().step()


class PublishedLoop:
    """The loop with its three networks.

    Attributes:
        generator: theta.
        pseudo_score: psi.
        average: the average of theta's weights; None where the recipe has none.
    """

    def __init__(
        self,
        teacher: nn.Module,
        alphas_cumprod: Tensor,
        config: Any,
        sample_shape: tuple[int, int, int],
        labels: tuple[int, int, int],
        make_optimizer: Callable[[nn.Module, bool, float], torch.optim.Optimizer],
        predict: Predict,
        predict_unguided: Predict,
    ) -> None:
        """Copy the teacher twice and make both optimizers.

        Args:
            teacher: phi; its parameters stop requiring gradients.
            alphas_cumprod: (T,) float64, abar_t.
            config: a `PeckerConfig`, for the constants of the method and `precision`.
            sample_shape: (C, H, W).
            labels: their number, the one to forget, the one in its place.
            make_optimizer: (network, is it the generator, learning rate) -> optimizer.
            predict: calls teacher and pseudo-score.
            predict_unguided: calls the generator.
        """
        self.generator = copy.deepcopy(teacher).requires_grad_(True)
        self.pseudo_score = copy.deepcopy(teacher).requires_grad_(True)
        self.average = None if config.ema.decay is None else copy.deepcopy(teacher)
        self._teacher = teacher.eval().requires_grad_(False)
        self._config = config
        self._shape = sample_shape
        self._num_labels, self._forget, self._override = labels
        self._device = next(teacher.parameters()).device
        self._a = alphas_cumprod.sqrt().to(self._device, torch.float32)
        self._b = (1 - alphas_cumprod).sqrt().to(self._device, torch.float32)
        self._predict, self._predict_unguided = predict, predict_unguided
        self._psi = make_optimizer(self.pseudo_score, False, config.pseudo_score.lr)
        self._theta = make_optimizer(self.generator, True, config.generator.lr)

    def run(self) -> Iterator[dict[str, float]]:
        """Iterate without end on drawn numbers; yields the losses of each iteration."""
        while True:
            yield self.iterate(self._draw())

    def iterate(self, draws: PublishedDraws) -> dict[str, float]:
        """One iteration; the four losses, means over their samples, without their weights."""
        losses = self._pseudo_score_phase(draws) | self._generator_phase(draws)
        if self.average is not None:
            decay = self._config.ema.decay
            with torch.no_grad(), torch.profiler.record_function("weight average"):
                pairs = zip(self.average.parameters(), self.generator.parameters(), strict=True)
                for average, param in pairs:
                    average.mul_(decay).add_(param, alpha=1 - decay)
        return losses

    def _pseudo_score_phase(self, draws: PublishedDraws) -> dict[str, float]:
        self.generator.eval().requires_grad_(False)
        self.pseudo_score.train().requires_grad_(True)
        self._psi.zero_grad()
        section = self._config.pseudo_score
        losses = {}
        for name, label, weight, numbers in (
            ("remain", draws.remain, section.lambda_remain, draws.pseudo_score[0]),
            ("forget", draws.forget, section.lambda_forget, draws.pseudo_score[1]),
        ):
            with torch.no_grad():
                x_g = self._generate(numbers.noise, label)
            x_t = self._add_noise(x_g, numbers)
            eps = self._eps(self.pseudo_score, x_t, numbers.t, label)
            loss = (numbers.e - eps).square().sum(dim=(1, 2, 3)).mean()
            (weight * loss).backward()
            losses[f"pseudo_score/{name}"] = self._read(loss)
        self._psi.step()
        return losses

    def _generator_phase(self, draws: PublishedDraws) -> dict[str, float]:
        self.pseudo_score.eval().requires_grad_(False)
        self.generator.train().requires_grad_(True)
        self._theta.zero_grad()
        section = self._config.generator
        losses = {}
        for name, label, teacher_label, weight, numbers in (
            ("remain", draws.remain, draws.remain, section.lambda_remain, draws.generator[0]),
            ("forget", draws.forget, draws.override, section.lambda_forget, draws.generator[1]),
        ):
            x_g = self._generate(numbers.noise, label)
            x_t = self._add_noise(x_g, numbers)
            s = self._denoise(self.pseudo_score, x_t, numbers.t, label)
            p = self._denoise(self._teacher, x_t, numbers.t, teacher_label)
            omega = (p - x_g).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-5)
            terms = (p - s) * ((p - x_g) - self._config.alpha * (p - s)) / omega
            loss = terms.sum(dim=(1, 2, 3)).mean()
            (weight * loss).backward()
            losses[f"generator/{name}"] = self._read(loss)
        self._theta.step()
        return losses

    def _read(self, loss: Tensor) -> float:
        return loss.item()

    # ---- one-step generation, noise, denoised means

    def _generate(self, noise: Tensor, label: Tensor) -> Tensor:
        """x_g = (z - b eps(z)) / a at t_init, where z = b n."""
        t = torch.full((len(noise),), self._config.diffusion.t_init, device=self._device)
        a, b = self._coefficients(t)
        z = b * noise
        with self._autocast():
            eps = self._predict_unguided(self.generator, z, t, label)
        return (z - b * eps.float()) / a

    def _add_noise(self, x: Tensor, numbers: TermDraws) -> Tensor:
        a, b = self._coefficients(numbers.t)
        return a * x + b * numbers.e

    def _denoise(self, network: nn.Module, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        a, b = self._coefficients(t)
        return (x_t - b * self._eps(network, x_t, t, label)) / a

    def _eps(self, network: nn.Module, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        with self._autocast():
            return self._predict(network, x_t, t, label).float()

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._a[t].view(-1, 1, 1, 1), self._b[t].view(-1, 1, 1, 1)

    def _autocast(self) -> Any:
        if self._config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    # ---- random numbers

    def _draw(self) -> PublishedDraws:
        size = self._config.batch_size
        kept = torch.randint(self._num_labels - 1, (size,), device=self._device)
        remain = kept + (kept >= self._forget)
        return PublishedDraws(
            remain,
            torch.full_like(remain, self._forget),
            torch.full_like(remain, self._override),
            (self._draw_term(size), self._draw_term(size)),
            (self._draw_term(size), self._draw_term(size)),
        )

    def _draw_term(self, size: int) -> TermDraws:
        diffusion = self._config.diffusion
        shape = (size, *self._shape)
        return TermDraws(
            torch.randn(shape, device=self._device),
            torch.randn(shape, device=self._device),
            torch.randint(diffusion.t_min, diffusion.t_max, (size,), device=self._device),
        )
