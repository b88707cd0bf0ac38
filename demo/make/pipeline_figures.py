"""Images of a pipeline's captions, for its figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

__all__ = ["draw_images"]

_CHUNK = 100  # images at a time


@torch.no_grad()
def draw_images(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int = 0,
    progress: str | None = None,
) -> Tensor:
    """One image per prompt, by DDIM.

    Image i does not depend on how many follow. A guidance of 1 is none.

    Returns:
        (N, C, 32, 32) float32 in [-1, 1], on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (pipeline.unet.config.in_channels, *(pipeline.unet.config.sample_size,) * 2)
    images = []
    with tqdm(total=len(prompts), desc=progress, unit="image", disable=progress is None) as bar:
        for first in range(0, len(prompts), _CHUNK):
            chunk = list(prompts[first : first + _CHUNK])
            # One call per image: torch's generator gives other numbers for other shapes.
            noise = torch.stack([torch.randn(shape, generator=generator) for _ in chunk])
            noise = noise.to(pipeline.device)
            drawn = pipeline(
                chunk,
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=noise,
                output_type="pt",
            ).images
            images.append((2 * drawn - 1).float().cpu())
            bar.update(len(chunk))
    return torch.cat(images)
