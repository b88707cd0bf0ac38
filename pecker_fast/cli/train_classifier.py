"""`pecker-fast train-classifier`: train the classifier that judges what a model draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import (
    INPUT,
    PATH,
    config_values,
    data_options,
    prepare,
    run_options,
    seed_option,
    settings_option,
    train,
)
from pecker_fast.cli.output import json_option, quiet_option, result
from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import check_run_directory

__all__ = ["train_classifier"]

HELD_OUT = {"stl10": 1000}
"""Images that published classifiers were tested on, where they are not the test images."""


@click.command(
    short_help="Train the classifier that judges what a model draws.",
    epilog="""\b
Examples:
    pecker-fast train-classifier --dataset cifar10 --data-root DATA --pretrained R34.pth --out c
    pecker-fast train-classifier --dataset stl10 --data-root DATA --pretrained R34.pth --out c
    pecker-fast train-classifier --dataset cifar10 --data-root DATA --out c
    pecker-fast train-classifier --arch small --dataset fashion-mnist --epochs 2 --out c
    pecker-fast evaluate RUN/model --classifier c --forget cat

\b
With --pretrained, torchvision's ResNet-34 for ImageNet is fine-tuned at 224 pixels as published:
10 passes, Adam 1e-5, 1e-4 for the last layer. Without, ResNet-34 learns from scratch at the size of
the images, with a stem for small ones. Of STL-10, 12,000 of all 13,000 images are trained on and
1,000 tested on. The folder receives the network (config.json, model.safetensors), the statistics of
the training images in its features, card.json with the test accuracy, and checkpoints: a run that
was interrupted goes on where it was when the same command is started again.
""",
)
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@click.option(
    "--arch",
    type=click.Choice(["resnet34", "small"]),
    default="resnet34",
    show_default=True,
    help="small: six convolutions, for a CPU.",
)
@click.option(
    "--pretrained",
    type=INPUT,
    help="File of torchvision's resnet34 weights for ImageNet; nothing is downloaded.",
)
@data_options
@click.option("--epochs", type=int, help="Passes over the images.")
@click.option("--iterations", type=int, help="Length of the run, in place of --epochs.")
@seed_option
@settings_option("batch_size=64")
@run_options
@json_option
@quiet_option
def train_classifier(
    out: Path,
    arch: str,
    pretrained: Path | None,
    dataset: str | None,
    data_root: Path | None,
    download: bool,
    force: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Train a classifier on a data set; `evaluate` and `erase` take its folder as --classifier."""
    if dataset is None:
        raise PeckerError(
            "train-classifier: --dataset is missing; e.g. --dataset cifar10 --data-root FOLDER"
        )
    if pretrained is not None and arch != "resnet34":
        raise PeckerError(f"train-classifier: --pretrained is for --arch resnet34, not {arch}")
    if None not in (options["epochs"], options["iterations"]):
        raise PeckerError("train-classifier: give --epochs or --iterations, not both")
    values = config_values(options)
    values.setdefault("held_out", HELD_OUT.get(dataset))

    from pecker_fast.methods.training_config import classifier_config

    config = classifier_config(arch, values, pretrained=pretrained is not None)
    check_run_directory(out)
    place = prepare(device, threads)

    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate.classifier_files import (
        CARD_NAME,
        CONFIG_NAME,
        STATISTICS_NAME,
        WEIGHTS_NAME,
    )
    from pecker_fast.files import write_text
    from pecker_fast.methods.classifier import ClassifierTrainer, load_split_images
    from pecker_fast.models.published import read_checkpoint
    from pecker_fast.runs.memory import naming_settings
    from pecker_fast.runs.outputs import run_directory

    weights = None
    if pretrained is not None:
        checkpoint = read_checkpoint(pretrained)
        weights = (str(pretrained), checkpoint.slots[checkpoint.choose()])
    images, test = load_split_images(dataset, data_root, config, download=download)
    config = config.resolved(len(images))
    files = (CONFIG_NAME, WEIGHTS_NAME, STATISTICS_NAME, CARD_NAME)
    with run_directory(out, force, Ranks(), also=files) as directory, naming_settings(config):
        trainer = ClassifierTrainer(
            images, config, place, weights=weights, directory=directory, progress=True
        )
        train(trainer, trainer.moved, Ranks())
        measured = trainer.measure(test)
        measured.statistics.save(out / STATISTICS_NAME)
        card = json.dumps(measured.card, indent=2, ensure_ascii=False)
        write_text(out / CARD_NAME, card + "\n")
        measured.network.save(out)
    figures, statistics = measured.card, out / STATISTICS_NAME
    lines = [
        f"trained on     {figures['train_images']}",
        f"test accuracy  {figures['test_accuracy']:.4f} of {figures['test_images']}",
        f"classifier     {out}",
        f"statistics     {statistics}",
    ]
    result(lines, lambda: {"classifier": out, "statistics": statistics, **figures})
