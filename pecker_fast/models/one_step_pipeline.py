"""A pipeline of diffusers that draws from any class model's generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
)
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.models.latents import decode

__all__ = ["OneStepPipeline"]


class OneStepPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images of classes, in one step; for any folder of a one-step generator that `erase` wrote.

    Example:
        >>> pipeline = OneStepPipeline.from_pretrained("run/model")  # doctest: +SKIP
        >>> pipeline([0, 1]).images  # doctest: +SKIP
    """

    _optional_components: ClassVar = ["unet", "transformer", "vae"]  # what diffusers asks for

    def __init__(
        self,
        scheduler: EulerDiscreteScheduler | FlowMatchEulerDiscreteScheduler,
        unet: Any = None,
        transformer: Any = None,
        vae: Any = None,
        patch_size: int = 1,
        sigma: float | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            scheduler: see `one_step_scheduler`; of a flow, one that shifts nothing.
            unet: the generator, `UNet2DModel` or `DDPMUNet`.
            transformer: the generator, where it is a DiT.
            vae: decodes what it draws; None: pixels.
            patch_size: the network sees as many pixels squared as channels.
            sigma: of a flow: where it starts.
        """
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)
        self.register_to_config(patch_size=patch_size, sigma=sigma)

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
        network: Any = self.unet or self.transformer
        place, size = network.device, network.config.sample_size
        labels = torch.as_tensor(class_labels, dtype=torch.int64).reshape(-1).to(place)
        height, width = (size, size) if isinstance(size, int) else size
        shape = (len(labels), network.config.in_channels, height, width)
        if noise is None:
            home = torch.device("cpu") if generator is None else generator.device
            noise = torch.randn(shape, generator=generator, device=home)
        if tuple(noise.shape) != shape:
            raise PeckerError(f"noise must be {shape}, got {tuple(noise.shape)}")
        scheduler, sigma = self.scheduler, self.config.sigma
        if sigma is None:
            scheduler.set_timesteps(1)
            sample = noise.to(place, network.dtype) * scheduler.init_noise_sigma
            seen = scheduler.scale_model_input(sample, scheduler.timesteps[0])
            times = torch.full_like(labels, int(scheduler.timesteps[0]))
        else:
            scheduler.set_timesteps(sigmas=[sigma])
            seen = sample = noise.to(place, network.dtype) * sigma
            times = torch.full((len(labels),), 1000 * sigma, device=place)
        t = scheduler.timesteps[0]
        predicted = network(seen, times, labels).sample
        # A DiT may predict the variance as well.
        sample = scheduler.step(predicted[:, : shape[1]], t, sample).prev_sample.float()
        if self.vae is None:
            images = F.pixel_shuffle(sample, self.config.patch_size)
        else:
            images = decode(self.vae, sample)
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return ImagePipelineOutput(images=images)
        pixels = images.cpu().permute(0, 2, 3, 1).numpy()
        found = pixels if output_type == "np" else self.numpy_to_pil(pixels)
        return ImagePipelineOutput(images=found)
