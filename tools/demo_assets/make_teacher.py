"""How the model folder in `pecker_fast/data/teacher` was made: teacher, classifier, statistics.

    python tools/demo_assets/make_teacher.py --out teacher --device cuda

5 minutes on an H100. Teachers of other images: `pecker-fast train-teacher`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from tqdm import tqdm

from pecker_fast.cli.common import machine_options, prepare
from pecker_fast.datasets import fashion_mnist
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier, load_classifier
from pecker_fast.evaluate.classifier_files import CARD_NAME
from pecker_fast.evaluate.classifying import classify, classify_with_early
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.files import write_text
from pecker_fast.models import ModelFolder

__all__ = ["TeacherRecipe", "make", "train_classifier", "train_teacher", "write_card"]


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

    Images are (N, C, H, W) float32 in [-1, 1], labels (N,) int64.
    """
    torch.manual_seed(recipe.seed)
    unet = build_unet(recipe, num_classes, tuple(images.shape[1:])).to(device)
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
        loss.backward()
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
    width: int = 32,
    batch_size: int = 256,
) -> SmallClassifier:
    """Train the classifier that judges samples; (N, C, H, W) images in [-1, 1].

    Half of each batch is blurred by noise of a small random size, since generated images are
    never as clean as real ones and a brittle judge would report its own faults.
    """
    torch.manual_seed(seed)
    classifier = SmallClassifier(num_classes, images.shape[1], width).to(device)
    images, labels = images.to(device), labels.to(device)
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
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.cpu().eval()


def write_card(
    folder: Path, images: torch.Tensor, labels: torch.Tensor, statistics: ClassStatistics
) -> None:
    """Write beside a classifier what it says of test images: what no model exceeds.

    Images are (N, C, H, W) in [-1, 1]; the statistics are of the training images.
    """
    source = f"the first of each in Fashion-MNIST's {len(labels):,} test images"
    classifier = load_classifier(folder)
    real = ClassFigures.of_real(images, labels, classifier, statistics, source)
    figures = None if real is None else real.to_dict()
    card = {"class_names": list(fashion_mnist.CLASS_NAMES), "test_figures": figures}
    write_text(folder / CARD_NAME, json.dumps(card) + "\n")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=fashion_mnist.DEFAULT_FOLDER,
    show_default=True,
    help="Folder with the four Fashion-MNIST files.",
)
@click.option("--steps", type=int, default=TeacherRecipe.steps, show_default=True)
@click.option("--batch-size", type=int, default=TeacherRecipe.batch_size, show_default=True)
@click.option("--classifier-epochs", type=int, default=12, show_default=True)
@click.option("--per-class", type=int, default=500, show_default=True, help="50-step samples.")
@click.option("--seed", type=int, default=0, show_default=True)
@machine_options
def make(
    out: Path,
    images: Path,
    steps: int,
    batch_size: int,
    classifier_epochs: int,
    per_class: int,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Train on Fashion-MNIST, measure, and write the folder, whole or not at all."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    recipe = TeacherRecipe(steps=steps, batch_size=batch_size, seed=seed)
    names = fashion_mnist.CLASS_NAMES
    train_images, train_labels = fashion_mnist.load_split(images, "train")
    test_images, test_labels = fashion_mnist.load_split(images, "test")
    start = time.monotonic()
    unet = train_teacher(train_images, train_labels, len(names), recipe, place)
    teacher_s = time.monotonic() - start
    classifier = train_classifier(
        train_images, train_labels, len(names), place, classifier_epochs, seed
    )
    classifier_s = time.monotonic() - start - teacher_s
    # TF32 convolutions would make the figures those of this card.
    torch.backends.cudnn.allow_tf32 = False
    logits, _ = classify(classifier.to(place), test_images)
    accuracy = float((logits.argmax(dim=1) == test_labels).float().mean())
    facts: dict[str, Any] = {
        "recipe": dataclasses.asdict(recipe),
        "classifier_epochs": classifier_epochs,
        "classifier_test_accuracy": accuracy,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "teacher_s": round(teacher_s, 1),
        "classifier_s": round(classifier_s, 1),
    }
    _, features, early = classify_with_early(classifier, train_images)
    source = "Fashion-MNIST, 60,000 training images"
    statistics = ClassStatistics.from_features(features, train_labels, len(names), source, early)
    folder = ModelFolder(
        network=unet.to(place),
        scheduler=build_scheduler(),
        class_names=names,
        patch_size=recipe.patch_size,
    )
    sampler, asked = Sampler(steps=50), balanced_labels(len(names), per_class)
    drawn = sampler.pixels(folder, asked, "50-step samples", ranks=Ranks())
    figures = ClassFigures.of_images(drawn, asked, classifier, statistics, sampler)
    unet.cpu()
    temporary = out.with_name(out.name + ".partial")
    dataclasses.replace(folder, figures={"teacher": figures.to_dict(), "training": facts}).save(
        temporary
    )
    classifier.cpu().save(temporary / "classifier")
    statistics.save(temporary / "statistics.safetensors")
    write_card(temporary / "classifier", test_images, test_labels, statistics)
    os.replace(temporary, out)
    reached = sum(figures.class_accuracy) / len(figures.class_accuracy)
    click.echo(
        f"{out}: teacher {reached:.3f} accuracy in 50 steps, classifier {accuracy:.3f} on the test "
        "images"
    )


if __name__ == "__main__":
    make()
