"""How the text-to-image pipeline of emoji in `pecker_fast_demo/emoji` was made.

    python demo/make/make_emoji.py --drawings FOLDER --out emoji --threads 1

`emoji_drawings.py` says what is in FOLDER. What a stopped run has trained is in emoji.partial, from
where the same command goes on. Forty minutes of one core's time. The figures are by the judges
that ship, which `make_emoji_judges.py` makes with the autoencoder that ships.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from emoji_drawings import COPYRIGHT, augmented, read_drawings
from pecker_fast_demo import emoji_judges_folder
from pecker_fast_demo.emoji_captions import (
    OBJECTS,
    STYLES,
    all_emoji_captions,
    emoji_captions,
    held_back_emoji_captions,
)
from pipeline_figures import draw_images
from pipeline_networks import AutoencoderRecipe, DenoiserRecipe, finish
from pipeline_training import train_pipeline
from torch import Tensor

from pecker_fast.cli import shared
from pecker_fast.cli.common import prepare
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.intervals import Share
from pecker_fast.files import write_text

__all__ = ["make"]

COPIES = 100  # of each drawing


@click.command()
@click.option("--drawings", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--steps", type=int, default=10_000, show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--autoencoder-steps", type=int, default=1500, show_default=True)
@click.option("--per-pair", type=int, default=4, show_default=True, help="Images in the figures.")
@shared.machine
def make(
    drawings: Path,
    out: Path,
    steps: int,
    batch_size: int,
    autoencoder_steps: int,
    per_pair: int,
    device: str,
    threads: int | None,
) -> None:
    """Train the pipeline and measure it; the folder is written whole."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    known = read_drawings(drawings)
    recipes = (
        AutoencoderRecipe(steps=autoencoder_steps, learning_rate=3e-3),
        DenoiserRecipe(steps=steps, batch_size=batch_size, learning_rate=1e-3),
    )
    captions = [
        all_emoji_captions(OBJECTS[drawn], STYLES[style])
        for drawn, style in zip(known.objects.tolist(), known.styles.tolist(), strict=True)
    ]
    work = out.with_name(out.name + ".partial")
    pipeline = train_pipeline(
        augmented(known.images, COPIES, seed=0),
        lambda image: captions[image % len(captions)],
        [caption for each in captions for caption in each],
        recipes,
        place,
        work,
    ).to(place)
    (work / "pipeline").mkdir(exist_ok=True)
    write_text(work / "pipeline" / "NOTICE", COPYRIGHT)
    description = {
        "kind": "text-to-image",
        "objects": OBJECTS,
        "styles": STYLES,
        "trained_on": f"{len(captions)} drawings of emoji, see NOTICE",
        "figures": [figures(pipeline, kind, per_pair) for kind in ("training", "held back")],
    }
    finish(pipeline, description, recipes, work, out)


def figures(pipeline: Any, kind: str, per_pair: int, steps: int = 10) -> dict[str, Any]:
    """How often the judges name object and style of images as their captions do."""
    choices = emoji_captions if kind == "training" else held_back_emoji_captions
    prompts = [
        choices(name, style)[index % 6]
        for name in OBJECTS
        for style in STYLES
        for index in range(per_pair)
    ]
    drawn = draw_images(pipeline, prompts, steps, 3.0, progress=f"{kind} captions")
    found: dict[str, Any] = {"captions": kind, "steps": steps, "guidance": 3.0, "seed": 0}
    for name, labels in (
        ("object", torch.arange(len(OBJECTS)).repeat_interleave(len(STYLES) * per_pair)),
        ("style", torch.arange(len(STYLES)).repeat_interleave(per_pair).repeat(len(OBJECTS))),
    ):
        share = Share.counted(_named(name, drawn) == labels)
        found[name] = [share.count, share.total, *share.interval]
    click.echo(json.dumps(found))
    return found


def _named(judge: str, images: Tensor) -> Tensor:
    return classify(load_classifier(emoji_judges_folder() / judge), images)[0].argmax(1)


if __name__ == "__main__":
    make()
