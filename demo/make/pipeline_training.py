"""Train the small text-to-image pipeline that ships: autoencoder first, then U-Net with its words.

All random numbers of a step come from (seed, step): the same number of threads gives the same bits.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pipeline_networks import (
    AutoencoderRecipe,
    DenoiserRecipe,
    assemble,
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from pecker_fast.files import replacing

__all__ = ["Captioner", "encode", "train_pipeline"]

_KEPT_EVERY = 250  # steps between two checkpoints
_AUTOENCODER, _DENOISER = 0, 1  # which of the two draws random numbers


class Captioner:
    """Draws a true caption for an image, now and then an empty one or one with unknown words."""

    def __init__(self, captions: Callable[[int], Sequence[str]], recipe: DenoiserRecipe) -> None:
        """Remember what is true of each image: number -> its captions."""
        self._captions = captions
        self._recipe = recipe

    def draw(self, images: np.ndarray[Any, Any], random: np.random.Generator) -> list[str]:
        """One caption for each of these image numbers."""
        return [self._draw_one(int(image), random) for image in images]

    def _draw_one(self, image: int, random: np.random.Generator) -> str:
        chance = random.random()
        if chance < self._recipe.empty_prompts:
            return ""
        captions = self._captions(image)
        caption = captions[random.integers(len(captions))]
        if chance < self._recipe.empty_prompts + self._recipe.unknown_words:
            # The encoder learns to pass over what it does not know, which is spelt in pieces.
            words = caption.split(" ")
            for length in random.integers(1, 8, size=random.integers(1, 4)):
                letters = random.choice(list(string.ascii_lowercase), length)
                words.insert(random.integers(len(words) + 1), "".join(letters))
            caption = " ".join(words)
        return caption


def train_pipeline(
    images: Tensor,
    captions: Callable[[int], Sequence[str]],
    vocabulary: Sequence[str],
    recipes: tuple[AutoencoderRecipe, DenoiserRecipe],
    device: torch.device,
    work: Path,
) -> StableDiffusionPipeline:
    """Train every part.

    Args:
        images: (N, C, 32, 32) float32 in [-1, 1].
        captions: number of an image -> what is true of it.
        vocabulary: captions, every word of which becomes a token.
        recipes: of both trainings.
        device: where to train.
        work: folder that keeps what was trained so far, from which it goes on, and the tokenizer.
    """
    pixels, text = recipes
    tokenizer = build_tokenizer(vocabulary, text.text_length, work / "tokenizer")
    vae = train_autoencoder(images, pixels, device, work)
    latents = encode(vae, images, device)
    unet, encoder = train_denoiser(
        latents, Captioner(captions, text), tokenizer, text, device, work
    )
    return assemble(tokenizer, encoder, vae, unet)


def train_autoencoder(
    images: Tensor, recipe: AutoencoderRecipe, device: torch.device, work: Path
) -> AutoencoderKL:
    """Train on reconstruction and set the scaling factor so that latents have unit variance.

    Images are (N, C, 32, 32) in [-1, 1]; what was trained so far is kept in the folder `work`.

    Returns:
        The autoencoder in eval mode, on the CPU.
    """
    torch.manual_seed(recipe.seed)
    vae = build_autoencoder(recipe).to(device)

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([recipe.seed, _AUTOENCODER, step])
        chosen = random.integers(len(images), size=recipe.batch_size)
        x = images[chosen].to(device)
        posterior = vae.encode(x).latent_dist
        noise = _normal(posterior.mean.shape, random, device)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().mean() / noise[0].numel()
        loss: Tensor = F.l1_loss(restored, x) + recipe.kl_weight * divergence
        return loss

    vae.load_state_dict(_train(vae, loss_of, recipe, work / "autoencoder.pt"))
    vae.eval()
    vae.register_to_config(scaling_factor=1.0)
    mean, std = encode(vae, images[:10_000], device)
    scale = (mean.var() + std.square().mean()).rsqrt()
    vae.register_to_config(scaling_factor=round(float(scale), 4))
    trained: AutoencoderKL = vae.cpu()
    return trained


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents (N, 4, 8, 8) of images (N, C, 32, 32)."""
    vae.to(device)
    parts = [
        vae.encode(part.to(device)).latent_dist
        for part in tqdm(torch.split(images, 250), desc="latents", unit="batch", mininterval=1.0)
    ]
    scale = vae.config.scaling_factor
    mean = torch.cat([part.mean for part in parts]) * scale
    return mean, torch.cat([part.std for part in parts]) * scale


def train_denoiser(
    latents: tuple[Tensor, Tensor],
    captioner: Captioner,
    tokenizer: CLIPTokenizer,
    recipe: DenoiserRecipe,
    device: torch.device,
    work: Path,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train U-Net and text encoder together on denoising (DDPM eq. 14).

    Latents are mean and standard deviation (N, 4, 8, 8) of every image, from `encode`. What was
    trained so far is kept in the folder `work`.

    Returns:
        The averages of both over training, in eval mode, on the CPU.
    """
    torch.manual_seed(recipe.seed)
    unet, text_encoder = build_unet(recipe), build_text_encoder(recipe, tokenizer)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    mean, std = (part.to(device) for part in latents)
    alphas = build_scheduler().alphas_cumprod.to(device)

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([recipe.seed, _DENOISER, step])
        images = random.integers(len(mean), size=recipe.batch_size)
        captions = captioner.draw(images, random)
        tokens = tokenizer(
            captions,
            padding="max_length",
            max_length=recipe.text_length,
            truncation=True,
            return_tensors="pt",
        )
        t = torch.from_numpy(random.integers(len(alphas), size=recipe.batch_size)).to(device)
        chosen = torch.from_numpy(images).to(device)
        x = mean[chosen] + std[chosen] * _normal(mean[chosen].shape, random, device)
        noise = _normal(x.shape, random, device)
        alpha = alphas[t].view(-1, 1, 1, 1)
        words = text_encoder(tokens.input_ids.to(device))[0]
        noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        return F.mse_loss(unet(noisy, t, encoder_hidden_states=words).sample, noise)

    both.load_state_dict(_train(both, loss_of, recipe, work / "text to image.pt"))
    both.cpu().eval()
    return unet, text_encoder


def _train(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    recipe: AutoencoderRecipe | DenoiserRecipe,
    checkpoint: Path,
) -> Mapping[str, Tensor]:
    """Adam with warm-up and half a cosine; returns the exponential average of the weights.

    Goes on from the checkpoint, if there is one.
    """
    module.train()
    parameters = list(module.parameters())
    # The fused CPU kernel of torch is wrong for mixed strides, so only CUDA uses the fused one.
    optimizer = torch.optim.Adam(parameters, recipe.learning_rate, fused=parameters[0].is_cuda)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first = saved["average"], saved["step"]
    bar = tqdm(
        total=recipe.steps, initial=first, desc=checkpoint.stem, unit="step", mininterval=1.0
    )
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # Early on the average is over all steps so far, so that it forgets the initial weights.
        weight = 1 - min(recipe.ema_decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, weight)
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % _KEPT_EVERY == 0 or step + 1 == recipe.steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            with replacing(checkpoint) as partial:
                torch.save({**state, "average": average, "step": step + 1}, partial)
    bar.close()
    return average


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a twentieth of the steps up, then half a cosine to 0."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def _normal(shape: torch.Size, random: np.random.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers, the same ones on every device."""
    generator = torch.Generator().manual_seed(int(random.integers(2**63)))
    return torch.randn(shape, generator=generator).to(device)
