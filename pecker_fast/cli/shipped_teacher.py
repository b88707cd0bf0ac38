"""Makes the model folder that the demo ships with: teacher, classifier and feature statistics."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import click
import diffusers
import torch

from pecker_fast.datasets import fashion_mnist as images_of
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.forgetting import TeacherFigures, classify
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.models import ModelFolder
from pecker_fast.models import train_teacher as training

__all__ = ["make_shipped_teacher"]


def make_shipped_teacher(
    out: Path,
    images: Path,
    recipe: training.TeacherRecipe,
    classifier_epochs: int,
    per_class: int,
    device: torch.device,
) -> None:
    """Train on Fashion-MNIST, measure, and write the folder `out`, whole or not at all.

    Args:
        out: the folder; must not exist.
        images: folder with the four Fashion-MNIST files.
        recipe: sizes and constants of the teacher.
        classifier_epochs: passes over the images for the classifier.
        per_class: 50-step samples of each class behind the teacher's figures.
        device: where to work.

    Raises:
        PeckerError: `out` exists, or an image file is missing or damaged.
    """
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    names = images_of.CLASS_NAMES
    train_images, train_labels = images_of.load_split(images, "train")
    test_images, test_labels = images_of.load_split(images, "test")
    start = time.monotonic()
    unet = training.train_teacher(train_images, train_labels, len(names), recipe, device)
    teacher_s = time.monotonic() - start
    classifier = training.train_classifier(
        train_images, train_labels, len(names), device, classifier_epochs, recipe.seed
    )
    classifier_s = time.monotonic() - start - teacher_s
    # TF32 convolutions would make the figures those of this card.
    torch.backends.cudnn.allow_tf32 = False
    classifier.to(device)
    logits, _ = classify(classifier, test_images)
    accuracy = float((logits.argmax(dim=1) == test_labels).float().mean())
    facts: dict[str, Any] = {
        "recipe": dataclasses.asdict(recipe),
        "classifier_epochs": classifier_epochs,
        "classifier_test_accuracy": accuracy,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "teacher_s": round(teacher_s, 1),
        "classifier_s": round(classifier_s, 1),
    }
    _, features = classify(classifier, train_images)
    statistics = ClassStatistics.from_features(
        features, train_labels, len(names), source="Fashion-MNIST, 60,000 training images"
    )
    folder = ModelFolder(
        unet=unet.to(device),
        scheduler=training.build_scheduler(),
        class_names=names,
        patch_size=recipe.patch_size,
    )
    sampler, labels = Sampler(steps=50), balanced_labels(len(names), per_class)
    pixels = sampler.pixels(folder, labels, "50-step samples", ranks=Ranks())
    assert pixels is not None  # one process
    figures = TeacherFigures.of_images(pixels, labels, classifier, statistics, sampler)
    unet.cpu()
    temporary = out.with_name(out.name + ".partial")
    dataclasses.replace(folder, figures={"teacher": figures.to_dict(), "training": facts}).save(
        temporary
    )
    classifier.cpu().save(temporary / "classifier")
    statistics.save(temporary / "statistics.safetensors")
    os.replace(temporary, out)
    reached = sum(figures.class_accuracy) / len(figures.class_accuracy)
    click.echo(
        f"{out}: teacher {reached:.3f} accuracy in 50 steps, classifier {accuracy:.3f} on the test "
        "images"
    )
