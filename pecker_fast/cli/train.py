"""`pecker-fast train-teacher` and `train-classifier`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pecker_fast.cli import shared
from pecker_fast.cli.common import config_values, prepare, result, say_config, train
from pecker_fast.cli.shared import INPUT, PATH, command, option
from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import MODEL_NAME, check_run_directory

__all__ = ["train_classifier", "train_teacher"]

HELD_OUT = {"stl10": 1000}
"""Images that published classifiers were tested on, where they are not the test images."""


@command(
    shared.out,
    option(
        "--config config_path", "YAML file or name of a recipe, see below.", required=True
    ),
    shared.data,
    option("--without", "Class whose images are left out: name or index."),
    shared.iterations,
    shared.seed,
    shared.settings("batch_size=64"),
    shared.run,
    shared.dry_run,
    shared.print_config,
    shared.json,
    shared.quiet,
    examples="""
    pecker-fast train-teacher --config cifar10_teacher --data-root DATA --out teacher
    pecker-fast train-teacher --config cifar10_teacher --without cat --data-root DATA --out t
    torchrun --nproc-per-node 8 -m pecker_fast.cli train-teacher --config cifar10_teacher
        --data-root DATA --out teacher
    pecker-fast train-teacher --config small_teacher --dataset fashion-mnist --out teacher
    pecker-fast train-teacher --config fashion_dit --out dit --dry-run

Recipes: cifar10_teacher (as published; `recipes show` says what STL-10 takes), fashion_retrain
(without one class: retraining from scratch, as --without does), small_teacher (to try it on a CPU),
fashion_dit (a DiT, by flow matching, on a CPU). The run directory receives checkpoints, config.yaml
and, at the end, the model folder `model` with the averaged weights. A run that was interrupted goes
on where it was when the same command is started again.
""",
)  # fmt: skip
def train_teacher(
    out: Path,
    config_path: str,
    dataset: str | None,
    data_root: Path | None,
    download: bool,
    force: bool,
    device: str,
    threads: int | None,
    dry_run: bool,
    print_config: bool,
    **options: Any,
) -> None:
    """Train a class-conditional diffusion model on images."""
    from pecker_fast.methods.training_config import load_teacher_config

    config = load_teacher_config(config_path, config_values(options))
    dataset = dataset or config.dataset
    if dataset is None:
        raise PeckerError(
            f"train-teacher: {config_path} leaves the images open; add --dataset, e.g. --dataset "
            "cifar10 --data-root FOLDER"
        )
    if print_config:
        say_config(config.model_copy(update={"dataset": dataset}))
        return
    check_run_directory(out)
    place = prepare(device, threads)

    import torch

    from pecker_fast.datasets import PUBLISHED_SPLIT
    from pecker_fast.datasets.loading import read_images
    from pecker_fast.distributed import Ranks
    from pecker_fast.methods.teacher import TeacherTrainer, build_network
    from pecker_fast.runs.directory import run_directory
    from pecker_fast.runs.dry_run import naming_settings

    ranks = Ranks.join(place.type)
    images = read_images(ranks, dataset, data_root, PUBLISHED_SPLIT.get(dataset, "train"), download)
    left_out = None if config.without is None else images.class_index(config.without)
    # What was used, not how it was said: a class may be named or numbered when a run is resumed.
    config = config.model_copy(update={"dataset": dataset, "without": left_out})
    if dry_run:
        from pecker_fast.methods.dry_run import try_teacher

        found = try_teacher(images, config, place, out)
        result(found.lines(), found.to_dict)
        return
    with torch.device("meta"):  # what does not fit comes out before any writing
        build_network(images.image_shape, images.num_classes, config)
    with run_directory(out, force, ranks) as directory, naming_settings(config):
        trainer = TeacherTrainer(
            images, config, place, directory=directory, ranks=ranks, progress=True
        )
        train(trainer, trainer.notes, ranks)
        model = trainer.model()
        ranks.first(lambda: model.save(out / MODEL_NAME))
    lines = [
        f"trained on    {model.figures['training']['images']}",
        f"iterations    {config.iterations:,}",
        f"teacher       {out / MODEL_NAME}",
    ]
    result(lines, lambda: {"out": out, "model": out / MODEL_NAME, **model.figures})


@command(
    option("--out", "Folder to write.", PATH, required=True),
    option(
        "--arch", "small: six convolutions, for a CPU.", ["resnet34", "small"], default="resnet34"
    ),
    option(
        "--pretrained", "File of torchvision's resnet34 weights for ImageNet; nothing is "
        "downloaded.", INPUT,
    ),
    shared.data,
    option("--epochs", "Passes over the images.", int),
    option("--iterations", "Length of the run, in place of --epochs.", int),
    shared.seed,
    shared.settings("batch_size=64"),
    shared.run,
    shared.json,
    shared.quiet,
    examples="""
    pecker-fast train-classifier --dataset cifar10 --data-root DATA --pretrained R34.pth --out c
    pecker-fast train-classifier --dataset cifar10 --data-root DATA --out c
    pecker-fast train-classifier --arch small --dataset fashion-mnist --epochs 2 --out c
    pecker-fast evaluate RUN/model --classifier c --forget cat

With --pretrained, torchvision's ResNet-34 for ImageNet is fine-tuned at 224 pixels as published;
without, it learns from scratch at the size of the images. Of STL-10, 12,000 of all 13,000 images
are trained on. The folder receives the network, the statistics of the training images in its
features, card.json with the test accuracy, and checkpoints, from which the same command goes on.
""",
)  # fmt: skip
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
    """Train the classifier that judges what a model draws."""
    for wrong, message in (
        (dataset is None, "--dataset is missing; e.g. --dataset cifar10 --data-root FOLDER"),
        (pretrained is not None and arch != "resnet34",
         f"--pretrained is for --arch resnet34, not {arch}"),
        (None not in (options["epochs"], options["iterations"]),
         "give --epochs or --iterations, not both"),
    ):  # fmt: skip
        if wrong:
            raise PeckerError(f"train-classifier: {message}")
    assert dataset is not None
    values = {"held_out": HELD_OUT.get(dataset), **config_values(options)}

    from pecker_fast.methods.training_config import classifier_config

    config = classifier_config(arch, values, pretrained=pretrained is not None)
    check_run_directory(out)
    place = prepare(device, threads)

    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate import classifier_files as names
    from pecker_fast.files import write_text
    from pecker_fast.methods.classifier import ClassifierTrainer, load_split_images
    from pecker_fast.models.published import read_checkpoint
    from pecker_fast.runs.directory import run_directory
    from pecker_fast.runs.dry_run import naming_settings

    weights = None
    if pretrained is not None:
        checkpoint = read_checkpoint(pretrained)
        weights = (str(pretrained), checkpoint.slots[checkpoint.choose()])
    images, test = load_split_images(dataset, data_root, config, download=download)
    config = config.resolved(len(images))
    statistics, also = out / names.STATISTICS_NAME, (names.CONFIG_NAME, names.WEIGHTS_NAME)
    files = (*also, names.STATISTICS_NAME, names.CARD_NAME)
    with run_directory(out, force, Ranks(), also=files) as directory, naming_settings(config):
        trainer = ClassifierTrainer(
            images, config, place, weights=weights, directory=directory, progress=True
        )
        train(trainer, trainer.moved, Ranks())
        measured = trainer.measure(test)
        measured.statistics.save(statistics)
        card = json.dumps(measured.card, indent=2, ensure_ascii=False)
        write_text(out / names.CARD_NAME, card + "\n")
        measured.network.save(out)
    figures = measured.card
    lines = [
        f"trained on     {figures['train_images']}",
        f"test accuracy  {figures['test_accuracy']:.4f} of {figures['test_images']}",
        f"classifier     {out}",
        f"statistics     {statistics}",
    ]
    result(lines, lambda: {"classifier": out, "statistics": statistics, **figures})
