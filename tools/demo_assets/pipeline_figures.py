"""How often a classifier recognises on a pipeline's images what their captions name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from pipeline_networks import without_border
from torch import Tensor
from tqdm import tqdm

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.classifying import classify

__all__ = ["T_INIT", "CaptionFigures", "draw_images", "measure"]

T_INIT = 625  # where a one-step generator starts on this schedule: noise 2.5 times the signal
_CHUNK = 100  # images at a time


@dataclass(frozen=True)
class CaptionFigures:
    """Accuracy of the class that a caption names."""

    captions: str  # "training" or "held back"
    steps: int  # DDIM steps, or 1 for the estimate of the clean image at `T_INIT`
    guidance: float  # scale of classifier-free guidance
    seed: int  # of captions and noise
    per_class: int  # images of each class
    class_accuracy: tuple[float, ...]  # share recognised, by class

    @property
    def accuracy(self) -> float:
        """Mean over the classes."""
        return sum(self.class_accuracy) / len(self.class_accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self) | {"accuracy": round(self.accuracy, 4)}


def measure(
    pipeline: StableDiffusionPipeline,
    classifier: Classifier,
    captions: str,
    steps: int,
    guidance: float,
    per_class: int,
    seed: int = 0,
    num_classes: int = 10,
) -> CaptionFigures:
    """Draw images for captions of every class and classify them.

    The captions, "training" or "held back", take turns.
    """
    prompts: list[str] = []
    random = np.random.default_rng(seed)
    for label in range(num_classes):
        choices = held_back_captions(label) if captions == "held back" else named_captions(label)
        order = random.permutation(len(choices))
        prompts += [choices[order[index % len(choices)]] for index in range(per_class)]
    images = draw_images(pipeline, prompts, steps, guidance, seed, progress=f"{captions} captions")
    logits, _ = classify(classifier, without_border(images))
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    right = (logits.argmax(dim=1) == labels).double().view(num_classes, per_class)
    shares = tuple(round(share, 4) for share in right.mean(dim=1).tolist())
    return CaptionFigures(captions, steps, guidance, seed, per_class, shares)


@torch.no_grad()
def draw_images(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int = 0,
    progress: str | None = None,
) -> Tensor:
    """One image per prompt.

    One step is the estimate of the clean image at `T_INIT`; more are DDIM's. Image i does not
    depend on how many follow. A guidance of 1 is none.

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
            if steps == 1:
                decoded = _one_step(pipeline, chunk, noise, guidance)
            else:
                drawn = pipeline(
                    chunk,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    latents=noise,
                    output_type="pt",
                ).images
                decoded = 2 * drawn - 1
            images.append(decoded.float().cpu())
            bar.update(len(chunk))
    return torch.cat(images)


def _one_step(
    pipeline: StableDiffusionPipeline, prompts: list[str], noise: Tensor, guidance: float
) -> Tensor:
    """Noise at `T_INIT` without any signal, and the clean image the network sees in it."""
    wanted, empty = pipeline.encode_prompt(prompts, pipeline.device, 1, True)
    alpha = pipeline.scheduler.alphas_cumprod[T_INIT]
    z = (1 - alpha).sqrt() * noise
    with_words, without = (
        pipeline.unet(z, T_INIT, encoder_hidden_states=words).sample for words in (wanted, empty)
    )
    predicted = without + guidance * (with_words - without)
    latents = (z - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
    decoded: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return decoded.clamp(-1, 1)
