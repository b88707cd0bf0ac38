"""An autoencoder between images and the latent images that a network sees."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from pecker_fast.files import read_json
from pecker_fast.models.weights import check_network, load_network

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL

__all__ = ["Autoencoder", "check_autoencoder", "decode", "encode", "load_autoencoder", "pixels"]

Autoencoder: TypeAlias = "AutoencoderKL | AutoencoderDC"

_CHUNK = 64  # images at a time
_SIDE = 8  # of the latents that an autoencoder first decodes


def load_autoencoder(folder: Path, channels: int) -> Autoencoder:
    """Load an autoencoder of diffusers for latents of so many channels, frozen, in eval mode.

    Raises:
        PeckerError: it is missing or damaged, or of other latent images.
    """
    vae = load_network(_kind(folder), folder, partial(_decode_once, channels))
    # In float32, whatever it is stored in; diffusers' own `float` warns.
    loaded: Autoencoder = nn.Module.float(vae).eval().requires_grad_(False)
    return loaded


def check_autoencoder(folder: Path, channels: int) -> None:
    """Refuse what `load_autoencoder` refuses but for NaN, without reading a weight."""
    check_network(_kind(folder), folder, partial(_decode_once, channels))


@torch.no_grad()
def decode(vae: Autoencoder, latents: Tensor) -> Tensor:
    """(N, C, H, W) latents as images, (N, C', f H, f W) float32, about in [-1, 1], on the CPU."""
    scale, shift = _scaling(vae)
    like = next(vae.parameters())
    images = [
        vae.decode(part.to(like) / scale + shift).sample.float().cpu()
        for part in torch.split(latents, _CHUNK)
    ]
    return torch.cat(images)


@torch.no_grad()
def encode(vae: Autoencoder, images: Tensor) -> Tensor:
    """Images in [-1, 1] as the latents that a network sees: the means, on the images' device."""
    scale, shift = _scaling(vae)
    like = next(vae.parameters())
    found: Iterator[Any] = (vae.encode(part.to(like)) for part in torch.split(images, _CHUNK))
    means = [
        (code.latent if hasattr(code, "latent") else code.latent_dist.mean).to(images)
        for code in found
    ]
    return (torch.cat(means) - shift) * scale


def pixels(vae: Autoencoder) -> int:
    """How many pixels of an image a latent one is, a side."""
    config: Any = vae.config
    levels = config.get("encoder_block_out_channels") or config.block_out_channels
    scale: int = 2 ** (len(levels) - 1)  # each level but one doubles
    return scale


def _kind(folder: Path) -> Any:
    import diffusers

    said = read_json(folder / "config.json")
    deep = isinstance(said, dict) and said.get("_class_name") == "AutoencoderDC"
    return diffusers.AutoencoderDC if deep else diffusers.AutoencoderKL


def _decode_once(channels: int, vae: Any) -> None:
    config = vae.config
    if config.latent_channels != channels:
        raise ValueError(
            f"it decodes {config.latent_channels} channels, the network draws {channels}; take "
            "both from one pipeline"
        )
    if config.get("latents_mean") or config.get("latents_std"):
        raise ValueError("'latents_mean' and 'latents_std' are not supported")
    found, side = decode(vae, torch.zeros(1, channels, _SIDE, _SIDE)), _SIDE * pixels(vae)
    if found.shape[2:] != (side, side):
        raise ValueError(f"it decodes {_SIDE} latents a side into {found.shape[2]} pixels")


def _scaling(vae: Autoencoder) -> tuple[float, float]:
    return vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
