"""How a model folder as `pecker_fast_demo/teacher` is made: teacher, classifier, statistics.

    python demo/make/make_teacher.py --run runs --out teacher --device cuda

What ships was trained before the package could, by loops of its own with the same networks, losses
and sizes: 12,000 steps of 512 images, 5 minutes on an H100. This trains them by `train-teacher`,
with the recipe `fashion_retrain` of all classes (`--set` changes it), and by `train-classifier`;
runs that are there are taken up. Weights differ from what ships, and so do figures.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import click
from make_dit import asset_options, measured, trained

from pecker_fast.cli.common import prepare
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.classifier_files import CARD_NAME, STATISTICS_NAME
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.files import read_json
from pecker_fast.models import ModelFolder

__all__ = ["make"]

AS_SHIPPED = ("without=null", "iterations=12000", "batch_size=512", "warmup=500")


@click.command()
@asset_options
@click.option("--epochs", type=int, default=12, show_default=True, help="Of the classifier.")
def make(
    run: Path,
    out: Path,
    images: Path,
    settings: tuple[str, ...],
    per_class: int,
    epochs: int,
    device: str,
    threads: int | None,
) -> None:
    """Train on Fashion-MNIST, measure, and write the folder, whole or not at all."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    judge, where = run / "classifier", ("--device", device)
    run.mkdir(exist_ok=True)
    trained(
        "train-teacher", run / "teacher", images, (*AS_SHIPPED, *settings), *where,
        "--config", "fashion_retrain",
    )  # fmt: skip
    trained(
        "train-classifier", judge, images, (), *where, "--arch", "small", "--epochs", f"{epochs}"
    )
    model = ModelFolder.load(run / "teacher" / "model")
    model.network.to(place)
    figures = measured(model, Sampler(steps=50), per_class, judge, judge / STATISTICS_NAME)
    model.network.cpu()
    temporary = out.with_name(out.name + ".partial")
    replace(model, figures={"teacher": figures.to_dict(), **model.figures}).save(temporary)
    SmallClassifier.load(judge).save(temporary / "classifier")
    shutil.copy(judge / CARD_NAME, temporary / "classifier")
    shutil.copy(judge / STATISTICS_NAME, temporary)
    os.replace(temporary, out)
    reached = sum(figures.class_accuracy) / len(figures.class_accuracy)
    click.echo(
        f"{out}: teacher {reached:.3f} accuracy in 50 steps, classifier "
        f"{read_json(judge / CARD_NAME)['test_accuracy']:.3f} on the test images"
    )


if __name__ == "__main__":
    make()
