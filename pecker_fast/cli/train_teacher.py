"""`pecker-fast train-teacher`: train the model that classes are then erased from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import config_overrides, machine_options, prepare
from pecker_fast.cli.data_options import data_options
from pecker_fast.cli.stopping import saving_at_interrupt
from pecker_fast.errors import PeckerError

__all__ = ["train_teacher"]


@click.command(
    short_help="Train a class-conditional diffusion model on images.",
    epilog="""\b
Examples:
    pecker-fast train-teacher --config cifar10_teacher --data-root DATA --out teacher
    pecker-fast train-teacher --config stl10_retrain --without cat --data-root DATA --out no-cat
    torchrun --nproc-per-node 8 -m pecker_fast.cli train-teacher --config cifar10_teacher
        --data-root DATA --out teacher
    pecker-fast train-teacher --config small_teacher --dataset fashion-mnist --out teacher
    pecker-fast train-teacher --out teacher --device cuda

\b
Recipes: cifar10_teacher, stl10_teacher (as published); cifar10_retrain, stl10_retrain (without one
class: retraining from scratch); small_teacher (to try it on a CPU). The run directory receives
checkpoints, config.yaml and, at the end, the model folder `model` with the averaged weights. A run
that was interrupted goes on where it was when the same command is started again. Without --config
the model that the demo ships with is made from Fashion-MNIST, with its classifier and statistics.
""",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory.")
@click.option("--config", "config_path", help="YAML file or name of a recipe, see below.")
@data_options
@click.option("--without", help="Class whose images are left out: name or index.")
@click.option("--iterations", type=int, help="Length of the run.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting, e.g. --set batch_size=64. May be given again.",
)
@click.option("--force", is_flag=True, help="Delete the run that --out holds and start anew.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Without --config: folder with the four Fashion-MNIST files.  [default: Debian's]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Without --config: training steps.  [default: 12000]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Without --config: images a step.  [default: 512]",
)
@click.option(
    "--classifier-epochs",
    type=click.IntRange(min=1),
    help="Without --config: passes over the images for the classifier.  [default: 12]",
)
@click.option(
    "--per-class",
    type=click.IntRange(min=2),
    help="Without --config: 50-step samples a class behind the figures.  [default: 500]",
)
@machine_options
def train_teacher(
    out: Path,
    config_path: str | None,
    dataset: str | None,
    data_root: Path | None,
    download: bool,
    without: str | None,
    iterations: int | None,
    seed: int | None,
    settings: tuple[str, ...],
    force: bool,
    images: Path | None,
    steps: int | None,
    batch_size: int | None,
    classifier_epochs: int | None,
    per_class: int | None,
    device: str,
    threads: int | None,
) -> None:
    """Train a class-conditional DDPM on a data set under --config, in one process or several.

    Without --config: make the Fashion-MNIST model inside the package anew, 5 minutes on an H100.
    """
    shipped = {
        "--images": images,
        "--steps": steps,
        "--batch-size": batch_size,
        "--classifier-epochs": classifier_epochs,
        "--per-class": per_class,
    }
    if config_path is not None:
        _check_none_given(
            shipped,
            "is for the shipped model, so without --config; a configuration has --iterations, "
            "--dataset and --set batch_size=N",
        )
        values = config_overrides(None, None, None, None, seed, settings, iterations)
        if without is not None:
            values["without"] = without
        _train(out, config_path, values, (dataset, data_root, download), force, device, threads)
        return
    configured = {
        "--dataset": dataset,
        "--data-root": data_root,
        "--download": download or None,
        "--without": without,
        "--iterations": iterations,
        "--set": settings or None,
        "--force": force or None,
    }
    _check_none_given(configured, "needs --config, e.g. --config cifar10_teacher or small_teacher")
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")

    from pecker_fast.cli.shipped_teacher import make_shipped_teacher
    from pecker_fast.datasets.fashion_mnist import DEFAULT_FOLDER
    from pecker_fast.distributed import Ranks
    from pecker_fast.models.train_teacher import TeacherRecipe

    place = prepare(device, threads)
    if not Ranks.join(place.type).alone:
        raise PeckerError(
            "train-teacher: the shipped model is made in one process; start it without torchrun, "
            "or give --config"
        )
    recipe = TeacherRecipe(seed=seed or 0)
    recipe = dataclasses.replace(
        recipe, steps=steps or recipe.steps, batch_size=batch_size or recipe.batch_size
    )
    make_shipped_teacher(
        out, images or DEFAULT_FOLDER, recipe, classifier_epochs or 12, per_class or 500, place
    )


def _check_none_given(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise PeckerError(f"train-teacher: {name} {why}")


def _train(
    out: Path,
    config_path: str,
    values: dict[str, Any],
    data: tuple[str | None, Path | None, bool],
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Train on real images into the run directory `out`; the run that it holds is taken up."""
    import torch

    from pecker_fast.cli.data_options import read_images
    from pecker_fast.cli.run_files import MODEL_NAME, run_directory, save_folder
    from pecker_fast.distributed import Ranks
    from pecker_fast.methods.teacher import TeacherTrainer, build_network
    from pecker_fast.methods.training_config import load_teacher_config

    config = load_teacher_config(config_path, values)
    dataset, root, download = data
    dataset = dataset or config.dataset
    if dataset is None:
        raise PeckerError(
            f"train-teacher: {config_path} leaves the images open; add --dataset, e.g. --dataset "
            "cifar10 --data-root FOLDER"
        )
    place = prepare(device, threads)
    ranks = Ranks.join(place.type)
    images = read_images(ranks, dataset, root, config.split, download)
    left_out = None if config.without is None else images.class_index(config.without)
    # What was used, not how it was said: a class may be named or numbered when a run is resumed.
    config = config.model_copy(update={"dataset": dataset, "without": left_out})
    with torch.device("meta"):  # what does not fit comes out before any writing
        build_network(images.image_shape, images.num_classes, config)
    with run_directory(out, force, ranks) as directory:
        trainer = TeacherTrainer(
            images, config, place, directory=directory, ranks=ranks, progress=True
        )
        for note in trainer.notes:
            click.echo(note, err=True)
        done = trainer.iteration
        if done:
            click.echo(f"resuming at iteration {done:,} of {config.iterations:,}", err=True)
        for _ in saving_at_interrupt(trainer.run(), lambda: trainer.iteration, trainer.save, ranks):
            pass
        model = trainer.model()
        ranks.first(lambda: save_folder(model, out / MODEL_NAME))
    click.echo(f"trained on    {model.figures['training']['images']}")
    click.echo(f"iterations    {config.iterations:,}")
    click.echo(f"teacher       {out / MODEL_NAME}")
