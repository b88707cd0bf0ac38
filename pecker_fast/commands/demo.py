"""`pecker-fast demo`: erase a class from the model that ships with the package."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pecker_fast.commands.common import (
    config_overrides,
    machine_options,
    prepare,
    training_options,
)

__all__ = ["demo"]

RECIPE = "demo"
PER_CLASS = 500


@click.command(
    short_help="Erase a class of the shipped model and prove it.",
    epilog="""\b
Examples:
    pecker-fast demo
    pecker-fast demo --out bag --forget Bag --override Coat
    pecker-fast demo --out control --mask random --density 0.1

\b
Classes: T-shirt, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot.
Needs no network, no data set and no GPU. An interrupted demo goes on when started again.
""",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Directory for the report, the pictures and the erased model.",
)
@training_options
@click.option("--iterations", type=int, help="Iterations of the distillation.")
@click.option("--force", is_flag=True, help="Delete the run that --out holds and start anew.")
@machine_options
def demo(
    out: Path,
    forget: str | None,
    override: str | None,
    density: float | None,
    kind: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    iterations: int | None,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Erase a class of the shipped Fashion-MNIST model and prove it, in about 3 minutes."""
    started = time.monotonic()
    overrides = config_overrides(forget, override, density, kind, seed, settings, iterations)

    from pecker_fast.commands.erase import print_report
    from pecker_fast.commands.erasing import MODEL_NAME, Judge, erase_class
    from pecker_fast.data import teacher_folder
    from pecker_fast.distill.config import load_config
    from pecker_fast.evaluate.classifier import load_classifier
    from pecker_fast.evaluate.forgetting import TeacherFigures
    from pecker_fast.evaluate.frechet import ClassStatistics
    from pecker_fast.models import ModelFolder

    config = load_config(RECIPE, overrides)
    place = prepare(device, threads)
    shipped = teacher_folder()
    folder = ModelFolder.load(shipped)
    judge = Judge(
        load_classifier(shipped / "classifier"),
        ClassStatistics.load(shipped / "statistics.safetensors"),
        PER_CLASS,
        teacher=TeacherFigures.from_dict(folder.figures["teacher"]),
    )
    report = erase_class(folder, config, out, place, force=force, judge=judge, started=started)
    print_report(report, out)
    click.echo(f"erased model  {out / MODEL_NAME}")
