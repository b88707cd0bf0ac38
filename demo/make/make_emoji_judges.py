"""How the judges of emoji in `pecker_fast_demo/emoji_judges` were made, with prompts to judge by.

    python demo/make/make_emoji_judges.py --drawings FOLDER --out judges --threads 1

No drawing that the pipeline learnt from is seen by them: both are tested on those. The judge of
objects knows them as six other hands draw them, and lines around these; that of styles knows the
four hands by all else that they drew. A third of the images went through the pipeline's
autoencoder, as whatever it draws has. `emoji_drawings.py` says what is in FOLDER. What a stopped
run has trained is in judges.partial, from where the same command goes on. Half an hour of one
core's time.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderKL
from emoji_drawings import augmented, by_other_hands, read_drawings, the_hands_others
from pecker_fast_demo import emoji_folder
from pecker_fast_demo.emoji_captions import (
    KINDS,
    OBJECTS,
    STYLES,
    emoji_captions,
    held_back_emoji_captions,
)
from torch import Tensor
from torch.nn import functional as F

from pecker_fast.cli import shared
from pecker_fast.cli.common import prepare
from pecker_fast.datasets.loading import ImageSet
from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.classifier_files import CARD_NAME
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.intervals import Share
from pecker_fast.files import write_text
from pecker_fast.methods.classifier import ClassifierTrainer
from pecker_fast.methods.training_config import classifier_config
from pecker_fast.runs.directory import RunDirectory

__all__ = ["make"]

COPIES = {"object": 300, "style": 24}  # of each drawing
NOISE = {"object": 0.2, "style": 0.05}  # styles differ by less than objects
SEEN = 3  # times that each is trained on
FORGOTTEN = {"object": ("dog", "cat"), "style": ("twemoji", "outline")}  # and what takes its place


@click.command()
@click.option("--drawings", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--batch-size", type=int, default=96, show_default=True)
@click.option("--width", type=int, default=32, show_default=True, help="Of the networks.")
@shared.machine
def make(
    drawings: Path, out: Path, batch_size: int, width: int, device: str, threads: int | None
) -> None:
    """Train both on drawings that are not the pipeline's, and test them on those."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    known = read_drawings(drawings)
    autoencoder = AutoencoderKL.from_pretrained(emoji_folder() / "vae").eval()
    test = augmented(known.images, 5, seed=2)
    images, objects = by_other_hands(drawings)
    work = out.with_name(out.name + ".partial")
    made = work / "judges"
    for kind, names, labels, (seen, told) in (
        (
            "object",
            OBJECTS,
            known.objects,
            (torch.cat([images, _lines(images)]), objects.repeat(2)),
        ),
        ("style", STYLES, known.styles, the_hands_others(drawings)),
    ):
        copies = range(COPIES[kind])
        learnt = [to_uint8(_altered(seen, autoencoder, copy, kind == "object")) for copy in copies]
        images_seen = ImageSet(torch.cat(learnt), told.repeat(len(copies)), names, "drawings")
        settings = {"width": width, "batch_size": batch_size, "noise": NOISE[kind]}
        judge = _trained(images_seen, settings, place, work / kind)
        judge.save(made / kind)
        share, drawn = (
            Share.counted(classify(judge, shown)[0].argmax(1) == labels.repeat(5))
            for shown in (test, _through(autoencoder, test))
        )
        card = {"class_names": names, "test_accuracy": share.value, "test_count": share.total}
        write_text(made / kind / CARD_NAME, json.dumps(card) + "\n")
        write_text(made / f"{kind}.csv", prompts_to_judge(kind))
        click.echo(f"{kind}: {share} of {share.total} drawings named, {drawn} as the pipeline sees")
    os.replace(made, out)
    shutil.rmtree(work)


def _trained(
    images: ImageSet, settings: dict[str, Any], device: torch.device, folder: Path
) -> SmallClassifier:
    """A classifier of these images; a stopped run in the folder goes on."""
    config = classifier_config("small", {"epochs": SEEN, "lr": 2e-3, **settings})
    with RunDirectory(folder) as directory:
        trainer = ClassifierTrainer(images, config, device, directory=directory, progress=True)
        for _ in trainer.run():
            pass
    assert isinstance(trainer.network, SmallClassifier)
    return trainer.network.cpu().eval()


def prompts_to_judge(kind: str) -> str:
    """A CSV file for `erase` and `attack`: captions of what is forgotten, held back of the rest."""
    (forget, override), file = FORGOTTEN[kind], io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["prompt", "group", "label"])
    for name, style in product(OBJECTS, STYLES):
        label = name if kind == "object" else style
        near = override in KINDS["animals"] and name in KINDS["animals"]
        group = "forget" if label == forget else "neighbours" if near else "keep"
        told = emoji_captions(name, style) if group == "forget" else []
        for caption in [*told, *held_back_emoji_captions(name, style)]:
            rows.writerow([caption, group, label])
    rows.writerow([override, "override", override])
    return file.getvalue()


def _altered(images: Tensor, autoencoder: AutoencoderKL, seed: int, recolour: bool) -> Tensor:
    """Every image once, moved; a third blurred, a third through the autoencoder, in part or all."""
    found = augmented(images, 1, seed, strength=2.0 if recolour else 1.5)
    generator = torch.Generator().manual_seed(seed)
    if recolour:
        found = _recoloured(found, generator)
    blurred, coded, _ = torch.randperm(len(found), generator=generator).tensor_split(3)
    small = F.avg_pool2d(found[blurred], 2)
    found[blurred] = F.interpolate(small, scale_factor=2.0, mode="bilinear")
    part = (1.2 * torch.rand(len(coded), 1, 1, 1, generator=generator)).clamp(max=1)
    found[coded] = torch.lerp(found[coded], _through(autoencoder, found[coded]), part)
    return found


def _recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Two fifths in other colours, a tenth in grey, a seventh in black and white."""
    count = len(images)
    colours = torch.eye(3) + 0.8 * (torch.rand(count, 3, 3, generator=generator) - 0.5)
    other = 1 - torch.einsum("nij,njhw->nihw", colours, 1 - images).clamp(0, 2)
    grey = images.mean(1, keepdim=True).expand_as(images)
    black = 2.0 * (grey > torch.rand(count, 1, 1, 1, generator=generator) - 0.5) - 1
    which = torch.rand(count, 1, 1, 1, generator=generator)
    kept = torch.where(which < 0.65, black, images)
    return torch.where(which < 0.4, other, torch.where(which < 0.5, grey, kept))


def _lines(images: Tensor) -> Tensor:
    """Black lines where the colours of images (N, 3, 64, 64) change, on white."""
    change = (F.max_pool2d(images, 5, 1, 2) + F.max_pool2d(-images, 5, 1, 2)).amax(1, keepdim=True)
    return (1 - (1.5 * change).clamp(0, 2)).expand_as(images)


@torch.no_grad()
def _through(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Images (N, 3, 32, 32) as they come out of an autoencoder."""
    parts = (autoencoder.encode(part).latent_dist.mode() for part in images.split(256))
    return torch.cat([autoencoder.decode(part).sample for part in parts]).clamp(-1, 1)


if __name__ == "__main__":
    make()
