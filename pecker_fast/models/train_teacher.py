"""Train a small class-conditional DDPM teacher and a classifier, and measure both.

This is what made the teacher that ships in `pecker_fast/data`; `pecker-fast train-teacher` without
--config runs it. Teachers of other images: `pecker_fast.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from tqdm import tqdm

from pecker_fast.evaluate.classifier import SmallClassifier

__all__ = ["TeacherRecipe", "build_scheduler", "build_unet", "train_classifier", "train_teacher"]


@dataclass(frozen=True)
class TeacherRecipe:
    """How the shipped teacher was trained."""

    channels: tuple[int, ...] = (64, 64)  # width of each resolution level
    attention: tuple[int, ...] = ()  # levels with self-attention
    patch_size: int = 2  # 28x28 pixels become 14x14 patches of 4 channels
    steps: int = 12_000
    batch_size: int = 512  # images a step
    learning_rate: float = 1e-3  # peak; 500 steps of warm-up, then half a cosine to 0
    ema_decay: float = 0.999  # per step
    seed: int = 0


def build_unet(
    recipe: TeacherRecipe, num_classes: int, image_shape: tuple[int, int, int]
) -> UNet2DModel:
    """A diffusers `UNet2DModel` of the recipe's size for images (C, H, W)."""
    channels, height, _ = image_shape
    levels = range(len(recipe.channels))
    return UNet2DModel(
        sample_size=height // recipe.patch_size,
        in_channels=channels * recipe.patch_size**2,
        out_channels=channels * recipe.patch_size**2,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        down_block_types=tuple(
            "AttnDownBlock2D" if level in recipe.attention else "DownBlock2D" for level in levels
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if level in recipe.attention else "UpBlock2D"
            for level in reversed(levels)
        ),
        add_attention=bool(recipe.attention),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=num_classes,
    )


def build_scheduler() -> DDPMScheduler:
    """The linear schedule of DDPM with 1,000 steps; samples are not clipped (one-step use)."""
    return DDPMScheduler(1000, 1e-4, 0.02, "linear", prediction_type="epsilon", clip_sample=False)


def train_teacher(
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    recipe: TeacherRecipe,
    device: torch.device,
) -> UNet2DModel:
    """Train on denoising (DDPM eq. 14) and return the weight average in eval mode, on the CPU.

    Args:
        images: (N, C, H, W) float32 in [-1, 1].
        labels: (N,) int64.
        num_classes: number of classes.
        recipe: sizes and hyperparameters.
        device: where to train.
    """
    torch.manual_seed(recipe.seed)
    unet = build_unet(recipe, num_classes, tuple(images.shape[1:])).to(device)  # type: ignore[arg-type]
    averaging: Any = torch.optim.swa_utils.get_ema_multi_avg_fn  # untyped in torch
    average = torch.optim.swa_utils.AveragedModel(unet, multi_avg_fn=averaging(recipe.ema_decay))
    # The fused CPU kernel of torch is wrong for mixed strides, so only CUDA uses the fused one.
    optimizer = torch.optim.Adam(
        unet.parameters(), recipe.learning_rate, fused=device.type == "cuda"
    )
    warm_up = min(500, recipe.steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(recipe.steps - warm_up, 1)),
        ],
        [warm_up],
    )
    alphas = build_scheduler().alphas_cumprod.to(device)
    inputs = F.pixel_unshuffle(images, recipe.patch_size).to(device)
    labels = labels.to(device)
    for _ in tqdm(range(recipe.steps), desc="teacher", unit="step", mininterval=1.0):
        chosen = torch.randint(len(inputs), (recipe.batch_size,), device=device)
        x, noise = inputs[chosen], torch.randn_like(inputs[chosen])
        t = torch.randint(len(alphas), (recipe.batch_size,), device=device)
        alpha = alphas[t].view(-1, 1, 1, 1)
        predicted = unet(
            alpha.sqrt() * x + (1 - alpha).sqrt() * noise, t, class_labels=labels[chosen]
        )
        loss = F.mse_loss(predicted.sample, noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(unet)
    trained: UNet2DModel = average.module
    return trained.cpu().eval()


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    device: torch.device,
    epochs: int = 8,
    seed: int = 0,
) -> SmallClassifier:
    """Train the classifier that judges samples; (N, C, H, W) images in [-1, 1].

    Half of each batch is blurred by noise of a small random size, since generated images are
    never as clean as real ones and a brittle judge would report its own faults.
    """
    torch.manual_seed(seed)
    classifier = SmallClassifier(num_classes, in_channels=images.shape[1]).to(device)
    images, labels = images.to(device), labels.to(device)
    batch_size = 256
    steps = epochs * len(images) // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    classifier.train()
    for _ in tqdm(range(steps), desc="classifier", unit="step", mininterval=1.0):
        chosen = torch.randint(len(images), (batch_size,), device=device)
        x = images[chosen]
        x[::2] += torch.rand(len(x[::2]), 1, 1, 1, device=device) * 0.2 * torch.randn_like(x[::2])
        loss = F.cross_entropy(classifier(x), labels[chosen], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return classifier.cpu().eval()
