"""A pipeline of diffusers that draws from any class model's generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, ImagePipelineOutput
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["OneStepPipeline"]


class OneStepPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images of classes, in one step; for any folder of a one-step generator that `erase` wrote.

    Example:
        >>> pipeline = OneStepPipeline.from_pretrained("run/model")  # doctest: +SKIP
        >>> pipeline([0, 1]).images  # doctest: +SKIP
    """

    def __init__(self, unet: Any, scheduler: EulerDiscreteScheduler, patch_size: int = 1) -> None:
        """Keep the parts.

        Args:
            unet: the generator, `UNet2DModel` or `DDPMUNet`.
            scheduler: see `one_step_scheduler`.
            patch_size: the network sees as many pixels squared as channels.
        """
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(patch_size=patch_size)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Draw an image of each class.

        Args:
            class_labels: (N,) indices of classes.
            generator: of the noise.
            noise: (N, C, H, W) standard normal, as the network sees images. None: drawn.
            output_type: "pil", "np" for (N, H, W, C) or "pt" for (N, C, H, W), both in [0, 1].

        Raises:
            PeckerError: another output type, or noise of another shape.
        """
        if output_type not in ("pil", "np", "pt"):
            raise PeckerError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
        place, size = self.unet.device, self.unet.config.sample_size
        labels = torch.as_tensor(class_labels, dtype=torch.int64).reshape(-1).to(place)
        height, width = (size, size) if isinstance(size, int) else size
        shape = (len(labels), self.unet.config.in_channels, height, width)
        if noise is None:
            home = torch.device("cpu") if generator is None else generator.device
            noise = torch.randn(shape, generator=generator, device=home)
        if tuple(noise.shape) != shape:
            raise PeckerError(f"noise must be {shape}, got {tuple(noise.shape)}")
        scheduler = self.scheduler
        scheduler.set_timesteps(1)
        t = scheduler.timesteps[0]
        sample = noise.to(place, self.unet.dtype) * scheduler.init_noise_sigma
        times = torch.full_like(labels, int(t))
        predicted = self.unet(scheduler.scale_model_input(sample, t), times, labels).sample
        sample = scheduler.step(predicted, t, sample).prev_sample.float()
        images = (F.pixel_shuffle(sample, self.config.patch_size) / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return ImagePipelineOutput(images=images)
        pixels = images.cpu().permute(0, 2, 3, 1).numpy()
        found = pixels if output_type == "np" else self.numpy_to_pil(pixels)
        return ImagePipelineOutput(images=found)
