"""From noise to images in many steps: DDIM, and DDPM's ancestral steps as SA and SalUn take them.

Both see the network as a function of (x, t) and the noise of a step as a function of nothing:
classes and guidance are `class_guided`'s, seeds those of `image_streams`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pecker_fast.distill.networks import predict_noise
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.batches import Tell

__all__ = ["class_guided", "ddim", "ddpm", "image_streams", "telling"]

Predict: TypeAlias = Callable[[Tensor, int], Tensor]
"""The noise in x (N, C, H, W) at a time step, in the shape of x."""

StepNoise: TypeAlias = Callable[[], Tensor]
"""Fresh standard normal noise (N, C, H, W) for one step."""

ReverseSteps: TypeAlias = Callable[[Tensor, Predict, StepNoise], Tensor]
"""Turns starting noise (N, C, H, W) into images of the same shape."""

LARGEST_GAP = 0.1
"""Share of the schedule that DDIM's first time step may miss by rounding."""


def ddim(config: Mapping[str, Any], steps: int, eta: float) -> ReverseSteps:
    """DDIM as diffusers has it, with what the model's scheduler says of clipping and prediction.

    Args:
        config: of the model's scheduler.
        steps: how many, evenly spaced.
        eta: how random they are, in [0, 1].

    Raises:
        PeckerError: more steps than the schedule has, or so many that they would not start near
            its end.
    """
    from diffusers import DDIMScheduler

    sampler = DDIMScheduler.from_config(config)
    total = _checked_total(sampler, steps)
    sampler.set_timesteps(steps)
    # They are total // steps apart: 600 of 1,000 would start at 599, from noise that the network
    # expects at 999. A `steps_offset` moves them all.
    start = int(sampler.timesteps.max())
    if not (1 - LARGEST_GAP) * total * (steps - 1) / steps <= start < total:
        raise PeckerError(
            f"sampler: {steps} DDIM steps would start at time step {start} of {total}; take a "
            f"number of steps that divides {total}, or fewer"
        )

    def draw(noise: Tensor, predict: Predict, step_noise: StepNoise) -> Tensor:
        x: Tensor = noise * sampler.init_noise_sigma
        for t in sampler.timesteps:
            predicted = predict(sampler.scale_model_input(x, t), int(t))
            # Without noise of ours the scheduler would draw from torch's global generator.
            fresh = step_noise() if eta else None
            x = sampler.step(predicted, t, x, eta, variance_noise=fresh).prev_sample
        return x

    return draw


def ddpm(scheduler: Any, steps: int) -> ReverseSteps:
    """Ancestral steps with the variance beta_t ("fixed large") and predicted images clamped.

    With abar' the schedule one step on, and beta = 1 - abar / abar' of the step as it is:

        x_0 = clamp((x - sqrt(1 - abar) eps) / sqrt(abar), -1, 1)
        x'  = [sqrt(abar') beta x_0 + sqrt(1 - beta) (1 - abar') x] / (1 - abar) + sqrt(beta) noise

    without noise in the last step.

    Args:
        scheduler: the model's, a diffusers scheduler of a network that predicts noise.
        steps: how many, evenly spaced: 0, T / steps, 2 T / steps, ... from the last.

    Raises:
        PeckerError: a number of steps that does not divide the schedule's, or a network that
            predicts something else.
    """
    total = _checked_total(scheduler, steps)
    if total % steps:
        raise PeckerError(
            f"sampler: DDPM steps must divide the {total} time steps of the model's schedule, "
            f"got {steps}"
        )
    # The time constants of training play no part here; any valid ones will do.
    schedule = NoiseSchedule.from_scheduler(scheduler, t_init=0, t_min=0, t_max=total)
    abar = schedule.alphas_cumprod.tolist()
    stride = total // steps

    def draw(noise: Tensor, predict: Predict, step_noise: StepNoise) -> Tensor:
        x = noise
        for t in range(total - stride, -1, -stride):
            following = abar[t - stride] if t else 1.0
            beta = 1 - abar[t] / following
            clean = (x - (1 - abar[t]) ** 0.5 * predict(x, t)) / abar[t] ** 0.5
            mean = (
                following**0.5 * beta * clean.clamp(-1.0, 1.0)
                + (1 - beta) ** 0.5 * (1 - following) * x
            ) / (1 - abar[t])
            x = mean + beta**0.5 * step_noise() if t else mean
        return x

    return draw


def class_guided(
    network: nn.Module, labels: Tensor, guidance: float, null_label: int | None
) -> Predict:
    """The network's prediction for classes: (1 + w) eps_c - w eps_null, in one pass of 2N.

    Args:
        network: called as `network(x, t, labels)`.
        labels: (N,) int64 class indices.
        guidance: w; 0 costs no second half.
        null_label: the label that means "no class"; None: the network has none.

    Raises:
        PeckerError: guidance for a network without such a label.
    """
    if guidance and null_label is None:
        raise PeckerError(
            "sampler: guidance needs a model that was trained with a label for 'no class', and "
            "this one has none (null_label in its pecker_fast.json); use guidance 0"
        )

    def predict(x: Tensor, t: int) -> Tensor:
        steps = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        if null_label is None or not guidance:
            return predict_noise(network, x, steps, labels)
        both = torch.cat([labels, torch.full_like(labels, null_label)])
        answers = predict_noise(network, torch.cat([x, x]), steps.repeat(2), both)
        with_class, without = answers.chunk(2)
        return (1 + guidance) * with_class - guidance * without

    return predict


def telling(predict: Predict, steps: int, tell: Tell) -> Predict:
    """The same prediction, which first tells the share of the sampler's steps that are done.

    Args:
        predict: called once a step.
        steps: how many there are.
        tell: takes 0, 1 / steps, ..., 1 - 1 / steps.
    """
    done = count()

    def told(x: Tensor, t: int) -> Tensor:
        tell(next(done) / steps)
        return predict(x, t)

    return told


def image_streams(seed: int, images: slice, like: Tensor) -> StepNoise:
    """Noise for step after step of some images, each from a stream of its own.

    Args:
        seed: of the sampler.
        images: which ones: image i gets the same numbers in any company.
        like: (N, C, H, W), whose shape and device the noise takes. It is drawn on the CPU.
    """
    streams = []
    for image in range(images.start, images.stop):
        words = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)
        streams.append(torch.Generator().manual_seed(int(words[0]) >> 1))  # it takes 63 bits

    def draw() -> Tensor:
        noise = [torch.randn(like.shape[1:], generator=stream) for stream in streams]
        return torch.stack(noise).to(like.device)

    return draw


def _checked_total(scheduler: Any, steps: int) -> int:
    total: int = scheduler.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise PeckerError(
            f"sampler: steps must be in 1 .. {total}, those of the model's schedule, got {steps}"
        )
    return total
