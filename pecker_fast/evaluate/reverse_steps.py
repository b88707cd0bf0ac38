"""From noise to images, in one step or by diffusers' schedulers in many; for classes and prompts.

What they differ in is the adapter that calls the network, guidance included, and its condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pecker_fast.distill.losses import one_step_sample
from pecker_fast.distill.networks import NoisePredictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.batches import Tell

__all__ = [
    "Reverse",
    "ddim",
    "ddpm",
    "flow_sigmas",
    "flow_steps",
    "image_streams",
    "many_steps",
    "one_step",
]

Reverse: TypeAlias = Callable[[Tensor, Tensor, list[torch.Generator], Tell], Tensor]
"""From (starting noise (N, C, H, W), conditions (N, ...), a stream an image, tell) to N images."""

LARGEST_GAP = 0.1
"""Share of the schedule that DDIM's first time step may miss by rounding."""


def one_step(network: nn.Module, predict: NoisePredictor, schedule: NoiseSchedule) -> Reverse:
    """G(n, c) of the distillation: one call of the network at `schedule.t_init`, no clamping."""
    return lambda noise, condition, streams, tell: one_step_sample(
        network, noise, schedule.t_init, condition, schedule, predict=predict
    )


def many_steps(
    network: nn.Module, predict: NoisePredictor, scheduler: Any, **options: Any
) -> Reverse:
    """The steps of a scheduler.

    The scheduler is of `ddim` or `ddpm`, which scale neither noise nor what the network sees;
    `options` are of each of its steps.
    """

    def draw(
        noise: Tensor, condition: Tensor, streams: list[torch.Generator], tell: Tell
    ) -> Tensor:
        x = noise
        for done, t in enumerate(scheduler.timesteps):
            tell(done / len(scheduler.timesteps))
            times = torch.full((len(x),), int(t), dtype=torch.int64, device=x.device)
            output = predict(network, x, times, condition)
            x = scheduler.step(output, t, x, generator=streams, **options).prev_sample
        return x

    return draw


def flow_steps(network: nn.Module, predict: NoisePredictor, sigmas: Tensor) -> Reverse:
    """Euler's steps along a rectified flow.

    `predict` is told 1000 sigma; `sigmas` are those of `flow_sigmas`.
    """

    def draw(
        noise: Tensor, condition: Tensor, streams: list[torch.Generator], tell: Tell
    ) -> Tensor:
        x = noise
        for done, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
            tell(done / (len(sigmas) - 1))
            times = torch.full((len(x),), 1000 * sigma, dtype=x.dtype, device=x.device)
            x = x + (following - sigma) * predict(network, x, times, condition)
        return x

    return draw


def flow_sigmas(config: Mapping[str, Any], steps: int, tokens: int) -> Tensor:
    """(steps + 1,) from 1 to 0, as the pipelines of diffusers space them.

    More tokens that the network makes of an image may mean a larger shift.

    Raises:
        PeckerError: no steps, or more than the schedule has.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    _check_steps(steps, config["num_train_timesteps"])
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    if not scheduler.config.use_dynamic_shifting:
        scheduler.set_timesteps(steps)
    else:
        told = scheduler.config
        slope = (told.max_shift - told.base_shift) / (
            told.max_image_seq_len - told.base_image_seq_len
        )
        mu = told.base_shift + slope * (tokens - told.base_image_seq_len)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    sigmas: Tensor = scheduler.sigmas
    return sigmas


def ddim(config: Mapping[str, Any], steps: int) -> Any:
    """DDIM of diffusers, with what the model's scheduler says of clipping and prediction.

    Raises:
        PeckerError: more steps than the schedule has, or so many that they would not start near
            its end.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(config)
    total = _checked_total(scheduler, steps)
    scheduler.set_timesteps(steps)
    # They are total // steps apart: 600 of 1,000 would start at 599, from noise that the network
    # expects at 999. A `steps_offset` moves them all.
    start = int(scheduler.timesteps.max())
    if not (1 - LARGEST_GAP) * total * (steps - 1) / steps <= start < total:
        raise PeckerError(
            f"sampler: {steps} DDIM steps would start at time step {start} of {total}; take a "
            f"number of steps that divides {total}, or fewer"
        )
    return scheduler


def ddpm(config: Mapping[str, Any], steps: int) -> Any:
    """Ancestral steps of diffusers as SA and SalUn take them.

    That is with the variance beta_t ("fixed large"), predicted images clamped to [-1, 1], and the
    time steps 0, T / steps, 2 T / steps, ... from the last.

    Raises:
        PeckerError: a number of steps that does not divide the schedule's.
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(
        config, variance_type="fixed_large", clip_sample=True, clip_sample_range=1.0,
        thresholding=False, timestep_spacing="leading", steps_offset=0,
    )  # fmt: skip
    total = _checked_total(scheduler, steps)
    if total % steps:
        raise PeckerError(
            f"sampler: DDPM steps must divide the {total} time steps of the model's schedule, "
            f"got {steps}"
        )
    scheduler.set_timesteps(steps)
    return scheduler


def image_streams(seed: int, images: slice) -> list[torch.Generator]:
    """A stream of noise for each of these images, the same in any company."""
    streams = []
    for image in range(images.start, images.stop):
        words = np.random.SeedSequence([seed, image]).generate_state(1, np.uint64)
        streams.append(torch.Generator().manual_seed(int(words[0]) >> 1))  # it takes 63 bits
    return streams


def _checked_total(scheduler: Any, steps: int) -> int:
    total: int = scheduler.config.num_train_timesteps
    _check_steps(steps, total)
    return total


def _check_steps(steps: int, total: int) -> None:
    if not 1 <= steps <= total:
        raise PeckerError(
            f"sampler: steps must be in 1 .. {total}, those of the model's schedule, got {steps}"
        )
