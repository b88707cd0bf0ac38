"""Images from a model folder, in one step or in many DDIM steps; the same seed, the same images.

The noise is drawn image by image on the CPU, so image i does not depend on the batch size, on the
device, or on how many images follow it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from pecker_fast.distill.losses import one_step_sample
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["Sampler", "balanced_labels", "default_t_init", "noise_batches"]

SIGMA_INIT = 2.5  # noise-to-signal ratio a one-step generator starts from (SiD, SFD)


@dataclass(frozen=True)
class Sampler:
    """How images are drawn.

    Attributes:
        steps: 1 for the one-step generator, more for DDIM (eta 0, no guidance).
        seed: of the noise.
        t_init: timestep of the one-step generator (None: the model folder's own, or where the
            noise-to-signal ratio is 2.5). DDIM does not use it.
        batch_size: images per forward pass.
    """

    steps: int = 1
    seed: int = 0
    t_init: int | None = None
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PeckerError(f"sampler: steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise PeckerError(f"sampler: batch_size must be at least 1, got {self.batch_size}")

    def describe(self) -> str:
        """The sampler in words, as the report prints it."""
        return "one step" if self.steps == 1 else f"{self.steps} DDIM steps"

    @torch.no_grad()
    def sample(self, model: ModelFolder, labels: Tensor, progress: str | None = None) -> Tensor:
        """Draw one image per label.

        Args:
            model: the network and its schedule. The network is used as it is: call `.eval()` first.
            labels: (N,) int64 class indices.
            progress: title of a progress bar on stderr; None for no bar.

        Returns:
            (N, C, H, W) float32 images in [-1, 1], on the CPU.

        Raises:
            PeckerError: a label that the model has no class for, or more steps than it has.
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
            raise PeckerError(
                f"sampler: labels must lie in [0, {model.num_classes}), "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
        draw = self._one_step if self.steps == 1 else self._ddim
        device = next(model.unet.parameters()).device
        images = torch.empty(len(labels), *model.image_shape)
        for part, noise in noise_batches(
            len(labels), self.batch_size, model.network_shape, self.seed, progress
        ):
            drawn = draw(model, noise.to(device), labels[part].to(device))
            images[part] = model.decode(drawn).float().cpu()
        return images

    def _one_step(self, model: ModelFolder, noise: Tensor, labels: Tensor) -> Tensor:
        t_init = self.t_init
        if t_init is None:
            t_init = int(model.figures.get("t_init", default_t_init(model.scheduler)))
        # The time constants of training play no part here; any valid ones will do.
        steps = model.scheduler.config.num_train_timesteps
        schedule = NoiseSchedule.from_scheduler(
            model.scheduler, t_init=t_init, t_min=0, t_max=steps
        )
        return one_step_sample(model.unet, noise, t_init, labels, schedule)

    def _ddim(self, model: ModelFolder, noise: Tensor, labels: Tensor) -> Tensor:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(model.scheduler.config)
        total = scheduler.config.num_train_timesteps
        if self.steps > total:
            raise PeckerError(
                f"sampler: steps must be at most the {total} steps of the model's schedule, "
                f"got {self.steps}"
            )
        scheduler.set_timesteps(self.steps, device=noise.device)
        x: Tensor = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            predicted = model.unet(scheduler.scale_model_input(x, t), t, class_labels=labels).sample
            x = scheduler.step(predicted, t, x, eta=0.0).prev_sample
        return x


def default_t_init(scheduler: Any) -> int:
    """The timestep whose noise-to-signal ratio is closest to 2.5; 440 on DDPM's linear schedule."""
    alphas = scheduler.alphas_cumprod
    sigma = ((1 - alphas) / alphas).sqrt()
    return int((sigma - SIGMA_INIT).abs().argmin())


def balanced_labels(num_classes: int, per_class: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ...: any prefix of K * n labels has n of each class."""
    return torch.arange(num_classes).repeat(per_class)


def noise_batches(
    total: int, batch_size: int, shape: tuple[int, ...], seed: int, progress: str | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The starting noise of `total` images, batch by batch.

    Args:
        total: number of images.
        batch_size: images at a time.
        shape: (C, H, W) of one image's noise.
        seed: of the noise. Image i gets the same numbers whatever the batch size and the total.
        progress: title of a progress bar on stderr, moved on as batches are done; None for no bar.

    Yields:
        Which images, and their noise (N, C, H, W), float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=total, desc=progress, unit="image", disable=progress is None) as bar:
        for start in range(0, total, batch_size):
            part = slice(start, min(start + batch_size, total))
            count = part.stop - part.start
            # One call per image: torch's generator gives other numbers for other shapes.
            yield part, torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])
            bar.update(count)
