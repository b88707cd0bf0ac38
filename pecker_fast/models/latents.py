"""An autoencoder between images and the latent images that a network sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.models.architectures.base import load_denoiser
from pecker_fast.models.schemas import AutoencoderConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["decode", "encode", "load_autoencoder"]

_CHUNK = 64  # images at a time


def load_autoencoder(folder: Path, channels: int) -> AutoencoderKL:
    """An `AutoencoderKL` of diffusers for latents of so many channels, frozen, in eval mode.

    Raises:
        PeckerError: it is missing or damaged, or of other latent images.
    """
    vae: Any = load_denoiser(folder, "AutoencoderKL", AutoencoderConfig)
    if vae.config.latent_channels != channels:
        raise PeckerError(
            f"{folder}: decodes {vae.config.latent_channels} channels, the network draws "
            f"{channels}; take both from one pipeline"
        )
    # In float32, whatever it is stored in; diffusers' own `float` warns.
    loaded: AutoencoderKL = nn.Module.float(vae).eval().requires_grad_(False)
    return loaded


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(N, C, H, W) latents as images, (N, C', f H, f W) float32, about in [-1, 1], on the CPU."""
    scale, shift = _scaling(vae)
    like = next(vae.parameters())
    images = [
        vae.decode(part.to(like) / scale + shift).sample.float().cpu()
        for part in torch.split(latents, _CHUNK)
    ]
    return torch.cat(images)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images in [-1, 1] as the latents that a network sees: the means, on the images' device."""
    scale, shift = _scaling(vae)
    like = next(vae.parameters())
    means = [
        vae.encode(part.to(like)).latent_dist.mean.to(images)
        for part in torch.split(images, _CHUNK)
    ]
    return (torch.cat(means) - shift) * scale


def _scaling(vae: AutoencoderKL) -> tuple[float, float]:
    return vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
