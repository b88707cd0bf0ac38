"""`pecker-fast train-teacher`: train the model that classes are then erased from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import (
    PATH,
    config_values,
    data_options,
    prepare,
    run_options,
    seed_option,
    settings_option,
    train,
)
from pecker_fast.cli.output import (
    dry_run_option,
    json_option,
    print_config_option,
    quiet_option,
    result,
    say_config,
)
from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import check_run_directory

__all__ = ["train_teacher"]


@click.command(
    short_help="Train a class-conditional diffusion model on images.",
    epilog="""\b
Examples:
    pecker-fast train-teacher --config cifar10_teacher --data-root DATA --out teacher
    pecker-fast train-teacher --config cifar10_teacher --without cat --data-root DATA --out t
    torchrun --nproc-per-node 8 -m pecker_fast.cli train-teacher --config cifar10_teacher
        --data-root DATA --out teacher
    pecker-fast train-teacher --config small_teacher --dataset fashion-mnist --out teacher
    pecker-fast train-teacher --config fashion_dit --out dit --dry-run

\b
Recipes: cifar10_teacher (as published; `recipes show` says what STL-10 takes), fashion_retrain
(without one class: retraining from scratch, as --without does), small_teacher (to try it on a CPU),
fashion_dit (a DiT, by flow matching, on a CPU). The run directory receives checkpoints, config.yaml
and, at the end, the model folder `model` with the averaged weights. A run that was interrupted goes
on where it was when the same command is started again.
""",
)
@click.option("--out", type=PATH, required=True, help="Run directory.")
@click.option(
    "--config", "config_path", required=True, help="YAML file or name of a recipe, see below."
)
@data_options
@click.option("--without", help="Class whose images are left out: name or index.")
@click.option("--iterations", type=int, help="Length of the run.")
@seed_option
@settings_option("batch_size=64")
@run_options
@dry_run_option
@print_config_option
@json_option
@quiet_option
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
    """Train a class-conditional model on a data set, in one process or several."""
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
    from pecker_fast.runs.finding import MODEL_NAME
    from pecker_fast.runs.memory import naming_settings
    from pecker_fast.runs.outputs import run_directory

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
