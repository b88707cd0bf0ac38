"""`pecker-fast evaluate`: the figures of forgetting for a model folder or for images on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import CLASSIFIER, INPUT, PATH, echo, judges, machine_options, prepare
from pecker_fast.cli.data_options import data_options
from pecker_fast.evaluate.defaults import JUDGED_PER_CLASS
from pecker_fast.files import check_output_file, write_text

__all__ = ["evaluate"]


@click.command(
    short_help="Judge a model, or images, by a classifier and by FID.",
    epilog="""\b
Examples:
    pecker-fast evaluate demo/model --classifier clf --forget "Ankle boot" --override Sneaker
    pecker-fast evaluate MODEL --classifier clf --statistics real.npz --forget 3 --json out.json
    pecker-fast evaluate RUN --classifier clf --per-class 5000 --dataset cifar10 --data-root DATA
        --inception INCEPTION.pth --samples RUN/samples --json RUN/evaluate.json
    pecker-fast evaluate --images FOLDER --real real.npz --inception INCEPTION.pth --forget 0

\b
The classifier is a folder that train-classifier wrote, or the state dict of torchvision's resnet34
as the train_classifier.py of SA, SalUn and SFD saves it (cifar10_resnet34.pth); no code in them is
run. The code in a TorchScript file is: one that you trust, which maps images in [-1, 1] to logits,
or to (logits, features), is given as trusted:FILE. --statistics adds the Fréchet distance in the
classifier's features: a file of ClassStatistics.save, or an .npz with the real images (N, C, H, W),
uint8, and their labels.

\b
Real images (--real or --dataset) add FID, KID, inception score, precision and recall of the kept
classes, by torch-fidelity. Its Inception weights are a file that you give; nothing is downloaded.
Drawn images are rounded to 8 bits a channel, as a PNG holds them, before anything judges them.
""",
)
@click.argument("model", type=INPUT, required=False)
@click.option(
    "--images",
    type=INPUT,
    help="Judge these instead of a model: a folder, or an .npz.",
)
@click.option(
    "--classifier",
    "classifiers",
    type=CLASSIFIER,
    multiple=True,
    help="The judge; given again, a second one, whose agreement is reported.",
)
@click.option(
    "--statistics",
    type=INPUT,
    help="Of real images.  [default: those in the folder of the classifier]",
)
@click.option(
    "--forget",
    help="The forgotten class: name or index.  [default: what an erased model says]",
)
@click.option("--override", help="The class in its place: name or index.")
@click.option("--real", type=INPUT, help="Real images: a folder, or an .npz.")
@data_options
@click.option("--inception", type=PATH, help="File of the Inception weights, for FID.")
@click.option(
    "--per-class",
    type=click.IntRange(min=2),
    help=f"Images each.  [default: {JUDGED_PER_CLASS}]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="1: one-step generator; more: DDIM.  [default: 1 for an erased model, 50 for a teacher]",
)
@click.option(
    "--sampler",
    "method",
    type=click.Choice(["one-step", "ddim", "ddpm"]),
    help="How images are drawn.  [default: by --steps]",
)
@click.option("--guidance", type=float, help="Classifier-free, in many steps.  [default: 0]")
@click.option("--eta", type=float, help="Randomness of DDIM's steps, 0 to 1.  [default: 0]")
@click.option("--seed", type=int, help="Seed of the noise.  [default: 0]")
@click.option(
    "--samples",
    type=PATH,
    help="Folder that keeps the images; an evaluation that was stopped goes on with them.",
)
@click.option("--json", "json_path", type=PATH, help="Write the figures.")
@click.option("--force", is_flag=True, help="Replace a file that exists, or other --samples.")
@machine_options
def evaluate(
    classifiers: tuple[Path, ...],
    json_path: Path | None,
    force: bool,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Judge images of MODEL, a model folder or a run, or images on disk."""
    if json_path is not None:
        check_output_file(json_path, force)

    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate import judge

    place = prepare(device, threads)
    found = judge(
        **options, **judges(classifiers), force=force, device=place, ranks=Ranks.join(place.type)
    )
    if found is None:
        return  # the first process judges what all have drawn
    for line in found.lines():
        echo(line)
    if json_path is not None:
        content = json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(json_path, content + "\n")
