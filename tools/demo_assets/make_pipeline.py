"""How the text-to-image pipeline in `pecker_fast/data/pipeline` was made, and measured.

    python tools/demo_assets/make_pipeline.py --out pipeline --threads 1

It took half an hour on one core; another number of threads gives other bits. What a stopped run has
trained is in pipeline.partial, from where the same command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pipeline_networks as networks
import pipeline_training as training
import torch
from pipeline_figures import T_INIT, measure

from pecker_fast.cli.common import machine_options, prepare
from pecker_fast.data import teacher_folder
from pecker_fast.datasets import fashion_mnist
from pecker_fast.datasets.fashion_captions import all_training_captions, training_captions
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier

__all__ = ["make"]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=fashion_mnist.DEFAULT_FOLDER,
    show_default=True,
    help="Folder with the four Fashion-MNIST files.",
)
@click.option("--steps", type=int, default=networks.DenoiserRecipe.steps, show_default=True)
@click.option(
    "--batch-size", type=int, default=networks.DenoiserRecipe.batch_size, show_default=True
)
@click.option(
    "--autoencoder-steps", type=int, default=networks.AutoencoderRecipe.steps, show_default=True
)
@click.option("--per-class", type=int, default=50, show_default=True, help="Images in the figures.")
@click.option("--guidance", type=float, default=3.0, show_default=True, help="In the figures.")
@click.option("--seed", type=int, default=0, show_default=True)
@machine_options
def make(
    out: Path,
    images: Path,
    steps: int,
    batch_size: int,
    autoencoder_steps: int,
    per_class: int,
    guidance: float,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Train the pipeline on Fashion-MNIST and measure it; the folder is written whole."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    pixels = networks.AutoencoderRecipe(steps=autoencoder_steps, seed=seed)
    text = networks.DenoiserRecipe(steps=steps, batch_size=batch_size, seed=seed)
    train_images, train_labels = fashion_mnist.load_split(images, "train")
    work = out.with_name(out.name + ".partial")
    traits, labels = training.measure_traits(train_images), train_labels.tolist()
    pipeline = training.train_pipeline(
        networks.with_border(train_images),
        lambda image: training_captions(
            labels[image], int(traits.tone[image]), int(traits.texture[image])
        ),
        all_training_captions(),
        (pixels, text),
        place,
        work,
    ).to(place)
    # TF32 convolutions would make the figures those of this card.
    torch.backends.cudnn.allow_tf32 = False
    classifier = SmallClassifier.load(teacher_folder() / "classifier").to(place)
    figures = [
        measure(pipeline, classifier, captions, sampled, guidance, per_class)
        for captions, sampled in (("training", 25), ("held back", 25), ("training", 1))
    ]
    description: dict[str, Any] = {
        "kind": "text-to-image",
        "class_names": fashion_mnist.CLASS_NAMES,
        "images": "28x28 with a black border of 2 pixels",
        "trained_on": "Fashion-MNIST, 60,000 training images (Zalando SE, MIT licence)",
        "t_init": T_INIT,
        "figures": [figure.to_dict() for figure in figures],
    }
    networks.finish(pipeline, description, (pixels, text), work, out)
    for figure in figures:
        click.echo(
            f"{out}: {figure.captions} captions, steps {figure.steps}: recognised "
            f"{figure.accuracy:.3f}"
        )


if __name__ == "__main__":
    make()
