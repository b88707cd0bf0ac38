"""`pecker-fast train-teacher`: make the model folder that the demo ships with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.commands.common import machine_options, prepare
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    import torch

    from pecker_fast.evaluate.classifier import SmallClassifier

__all__ = ["train_teacher"]


@click.command(
    short_help="Train the model that the demo ships with.",
    epilog="""\b
Examples:
    pecker-fast train-teacher --out teacher --device cuda
    pecker-fast train-teacher --out teacher --steps 3000 --batch-size 64
""",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=Path("/usr/share/datasets/fashion-mnist"),
    show_default=True,
    help="Folder with the four Fashion-MNIST files (Debian: dataset-fashion-mnist).",
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.  [default: 12000]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a step.  [default: 512]")
@click.option(
    "--classifier-epochs",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Passes over the images for the classifier.",
)
@click.option(
    "--per-class",
    type=click.IntRange(min=2),
    default=500,
    show_default=True,
    help="50-step samples per class behind the teacher's figures.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@machine_options
def train_teacher(
    out: Path,
    images: Path,
    steps: int | None,
    batch_size: int | None,
    classifier_epochs: int,
    per_class: int,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Train a Fashion-MNIST teacher, its classifier and feature statistics, and measure them.

    The defaults made the teacher inside the package: 5 minutes on an H100. On a laptop use
    fewer and smaller steps.
    """
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")

    import dataclasses
    import os
    import time

    import diffusers
    import torch

    from pecker_fast.evaluate.forgetting import TeacherFigures, classify
    from pecker_fast.evaluate.frechet import ClassStatistics
    from pecker_fast.evaluate.sampling import Sampler
    from pecker_fast.models import ModelFolder
    from pecker_fast.models import train_teacher as training
    from pecker_fast.models.fashion_mnist import CLASS_NAMES, load_split

    place = prepare(device, threads)
    train_images, train_labels = load_split(images, "train")
    test_images, test_labels = load_split(images, "test")
    recipe = training.TeacherRecipe(seed=seed)
    recipe = dataclasses.replace(
        recipe, steps=steps or recipe.steps, batch_size=batch_size or recipe.batch_size
    )
    start = time.monotonic()
    unet = training.train_teacher(train_images, train_labels, len(CLASS_NAMES), recipe, place)
    teacher_s = time.monotonic() - start
    classifier = training.train_classifier(
        train_images, train_labels, len(CLASS_NAMES), place, classifier_epochs, seed
    )
    classifier_s = time.monotonic() - start - teacher_s
    # TF32 convolutions would make the figures those of this card.
    torch.backends.cudnn.allow_tf32 = False
    training_facts: dict[str, Any] = {
        "recipe": dataclasses.asdict(recipe),
        "classifier_epochs": classifier_epochs,
        "classifier_test_accuracy": _accuracy(classifier, test_images, test_labels, place),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "teacher_s": round(teacher_s, 1),
        "classifier_s": round(classifier_s, 1),
    }
    _, features = classify(classifier.to(place), train_images.to(place))
    statistics = ClassStatistics.from_features(
        features, train_labels, len(CLASS_NAMES), source="Fashion-MNIST, 60,000 training images"
    )
    folder = ModelFolder(
        unet=unet.to(place),
        scheduler=training.build_scheduler(),
        class_names=CLASS_NAMES,
        patch_size=recipe.patch_size,
    )
    figures = TeacherFigures.measure(
        folder, classifier, statistics, Sampler(steps=50), per_class, progress="50-step samples"
    )
    unet.cpu()
    shipped = {"teacher": figures.to_dict(), "training": training_facts}
    temporary = out.with_name(out.name + ".partial")
    dataclasses.replace(folder, figures=shipped).save(temporary)
    classifier.cpu().save(temporary / "classifier")
    statistics.save(temporary / "statistics.safetensors")
    os.replace(temporary, out)
    accuracy = sum(figures.class_accuracy) / len(figures.class_accuracy)
    click.echo(
        f"{out}: teacher {accuracy:.3f} accuracy in 50 steps, classifier "
        f"{training_facts['classifier_test_accuracy']:.3f} on the test images"
    )


def _accuracy(
    classifier: SmallClassifier, images: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> float:
    from pecker_fast.evaluate.forgetting import classify

    logits, _ = classify(classifier.to(device), images.to(device))
    return float((logits.argmax(dim=1) == labels).float().mean())
