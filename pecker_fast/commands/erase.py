"""`pecker-fast erase`: remove a class from the user's own model."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pecker_fast.commands.common import (
    MODEL_ARGUMENT,
    config_overrides,
    load_statistics,
    machine_options,
    prepare,
    training_options,
)
from pecker_fast.errors import PeckerError

__all__ = ["erase"]


@click.command(
    short_help="Erase a class from your own model.",
    epilog="""\b
Examples:
    pecker-fast erase MODEL --forget cat --override dog --out run --config cifar10
    pecker-fast erase MODEL --config recipe.yaml --out run --classifier clf.pt --statistics real.npz
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run

\b
The run directory receives checkpoints, mask.safetensors, config.yaml and, at the end, the erased
model as a folder `model`. With --classifier also report.html, report.json and pictures. A run that
was interrupted goes on where it was when the same command is started again.
""",
)
@MODEL_ARGUMENT
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory.")
@click.option("--config", "config_path", help="YAML file or name of a shipped recipe.")
@training_options
@click.option("--iterations", type=int, help="Iterations of the distillation.")
@click.option(
    "--mask-file", type=click.Path(path_type=Path), help="Use this mask instead of finding one."
)
@click.option("--classifier", type=click.Path(path_type=Path), help="Judge; gives a report.")
@click.option("--statistics", type=click.Path(path_type=Path), help="Real images, see `evaluate`.")
@click.option(
    "--per-class",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Images of each class in the evaluation.",
)
@click.option(
    "--teacher-steps",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="DDIM steps of the original model in the evaluation.",
)
@click.option("--force", is_flag=True, help="Delete the run that --out holds and start anew.")
@machine_options
def erase(
    model: Path,
    out: Path,
    config_path: str | None,
    forget: str | None,
    override: str | None,
    density: float | None,
    kind: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    iterations: int | None,
    mask_file: Path | None,
    classifier: Path | None,
    statistics: Path | None,
    per_class: int,
    teacher_steps: int,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Erase a class from the model folder MODEL."""
    started = time.monotonic()
    if config_path is None and (forget is None or override is None):
        raise PeckerError("erase: give --forget and --override, or a --config that has them")
    if statistics is not None and classifier is None:
        raise PeckerError("erase: --statistics needs --classifier, whose features it describes")
    overrides = config_overrides(forget, override, density, kind, seed, settings, iterations)

    from pecker_fast.commands.erasing import MODEL_NAME, Judge, erase_class
    from pecker_fast.distill.config import load_config
    from pecker_fast.evaluate.classifier import load_classifier
    from pecker_fast.mask import SaliencyMask
    from pecker_fast.models import ModelFolder

    config = load_config(config_path, overrides)
    place = prepare(device, threads)
    folder = ModelFolder.load(model)
    mask = None if mask_file is None else SaliencyMask.load(mask_file, folder.unet)
    judge = None
    if classifier is not None:
        loaded = load_classifier(classifier)
        real = None if statistics is None else load_statistics(statistics, folder, loaded)
        judge = Judge(loaded, real, per_class, teacher_steps=teacher_steps)
    report = erase_class(
        folder, config, out, place, force=force, mask=mask, judge=judge, started=started
    )
    if report is not None:
        print_report(report, out)
    click.echo(f"erased model  {out / MODEL_NAME}")


def print_report(report: object, out: Path) -> None:
    """Print what happened, the table of the page, and where the page is."""
    from pecker_fast.evaluate.report import ErasureReport

    if not isinstance(report, ErasureReport):
        raise TypeError(f"expected an ErasureReport, got {type(report).__name__}")
    click.echo(report.headline())
    click.echo(report.kept_sentence())
    frozen = report.frozen
    click.echo(
        f"{frozen.frozen:,} of {frozen.frozen + frozen.salient:,} parameters were frozen; "
        f"{frozen.frozen_changed:,} of them changed, compared bit by bit."
    )
    click.echo()
    rows = [("", "original", "erased"), *report.rows()]
    width = max(len(row[0]) for row in rows)
    for name, before, after in rows:
        click.echo(f"{name:{width}}  {before:>12}  {after:>12}")
    click.echo()
    click.echo(f"wall time     {report.wall_s:.0f} s")
    click.echo(f"report        {out / 'report.html'}")
