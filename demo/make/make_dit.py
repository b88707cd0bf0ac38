"""How a DiT that learns Fashion-MNIST by flow matching is made, and measured.

    python demo/make/make_dit.py --run dit-run --out dit --threads 2

The recipe is `fashion_dit`; `--set` changes it. A run that is there is taken up: it may be stopped
at any time. Weights are stored in fp16, and are measured as they are stored.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from pecker_fast_demo import teacher_folder

from pecker_fast import cli
from pecker_fast.cli import shared
from pecker_fast.cli.common import prepare
from pecker_fast.cli.shared import together
from pecker_fast.datasets import fashion_mnist
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.models import ModelFolder

__all__ = ["asset_options", "make", "measured", "trained"]

GUIDANCE = 1.0  # w of (1 + w) v_c - w v_null

asset_options: Callable[[Any], Any] = together(
    click.option("--run", type=click.Path(path_type=Path), required=True, help="Of training."),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write."),
    click.option(
        "--images",
        type=click.Path(path_type=Path),
        default=fashion_mnist.DEFAULT_FOLDER,
        show_default=True,
        help="Folder with the four Fashion-MNIST files.",
    ),
    shared.settings("iterations=100"),
    click.option("--per-class", type=int, default=500, show_default=True, help="50-step samples."),
    shared.machine,
)


@click.command()
@asset_options
def make(
    run: Path,
    out: Path,
    images: Path,
    settings: tuple[str, ...],
    per_class: int,
    device: str,
    threads: int | None,
) -> None:
    """Train, or go on with training; then measure, and write the folder, whole or not at all."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    trained("train-teacher", run, images, settings, "--config", "fashion_dit", "--device", device)
    teacher = ModelFolder.load(run / "model")
    # As they will be stored: what is measured is what ships.
    rounded = teacher.network.half().float().to(place)
    model = replace(teacher, network=rounded)
    plain, guided = (
        measured(model, Sampler(steps=50, guidance=scale), per_class) for scale in (0.0, GUIDANCE)
    )
    facts = {
        "teacher": plain.to_dict(),
        "guided": {"guidance": GUIDANCE, **guided.to_dict()},
        **teacher.figures,
    }
    temporary = out.with_name(out.name + ".partial")
    replace(model, network=rounded.cpu().half(), figures=facts).save(temporary)
    os.replace(temporary, out)
    for words, found in (("plain", plain), (f"guidance {GUIDANCE:g}", guided)):
        named = statistics.mean(found.class_accuracy)
        distance = statistics.mean(found.frechet_without)
        click.echo(f"{out}, {words}: {named:.3f} named as asked, Fréchet distance {distance:.2f}")


def trained(command: str, run: Path, images: Path, settings: Sequence[str], *words: str) -> None:
    """Train by a command of the package on Fashion-MNIST, as many threads as torch has."""
    changes = [word for change in settings for word in ("--set", change)]
    threads = ["--threads", str(torch.get_num_threads())]
    line = [command, *words, "--dataset", "fashion-mnist", "--data-root", str(images), *threads]
    if code := cli.main([*line, "--out", str(run), *changes]):
        raise SystemExit(code)


def measured(
    model: ModelFolder,
    sampler: Sampler,
    per_class: int,
    judge: Path | None = None,
    real: Path | None = None,
) -> ClassFigures:
    """What a classifier says of images of every class, with statistics of real ones; or ours do."""
    # TF32 convolutions would make the figures those of this card.
    torch.backends.cudnn.allow_tf32 = False
    place = next(model.network.parameters()).device
    asked = balanced_labels(model.num_classes, per_class)
    drawn = sampler.pixels(model, asked, "samples", ranks=Ranks())
    assert drawn is not None  # one process draws
    classifier = load_classifier(judge or teacher_folder() / "classifier").to(place)
    known = ClassStatistics.load(real or teacher_folder() / "statistics.safetensors")
    return ClassFigures.of_images(drawn, asked, classifier, known, sampler)


if __name__ == "__main__":
    make()
