"""`pecker-fast train-pipeline`: make the text-to-image pipeline that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.common import machine_options, prepare
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["train_pipeline"]


@click.command(
    short_help="Train the text-to-image pipeline that ships.",
    epilog="""\b
Examples:
    pecker-fast train-pipeline --out pipeline
    pecker-fast train-pipeline --out pipeline --steps 20000 --device cuda
""",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=Path("/usr/share/datasets/fashion-mnist"),
    show_default=True,
    help="Folder with the four Fashion-MNIST files (Debian: dataset-fashion-mnist).",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the U-Net.  [default: 3000]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a step.  [default: 64]")
@click.option(
    "--autoencoder-steps", type=click.IntRange(min=1), help="Steps before.  [default: 6000]"
)
@click.option(
    "--per-class",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Images of each class behind each figure.",
)
@click.option("--guidance", type=float, default=3.0, show_default=True, help="In the figures.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@machine_options
def train_pipeline(
    out: Path,
    images: Path,
    steps: int | None,
    batch_size: int | None,
    autoencoder_steps: int | None,
    per_class: int,
    guidance: float,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Train a Fashion-MNIST text-to-image pipeline in Stable Diffusion's format, and measure it.

    The defaults made the pipeline inside the package, in half an hour on one CPU core (--threads 1;
    other numbers of threads give other bits). A run that was stopped goes on where it was when the
    same command is given again.
    """
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")

    import dataclasses
    import json
    import os
    import shutil

    import diffusers
    import torch
    import transformers

    from pecker_fast.datasets.fashion_captions import all_training_captions, measure_traits
    from pecker_fast.datasets.fashion_mnist import CLASS_NAMES, load_split
    from pecker_fast.files import write_text
    from pecker_fast.models import pipeline_networks as networks
    from pecker_fast.models import train_pipeline as training
    from pecker_fast.models.pipeline_figures import T_INIT

    place = prepare(device, threads)
    train_images, train_labels = load_split(images, "train")
    pixels = networks.AutoencoderRecipe(seed=seed)
    pixels = dataclasses.replace(pixels, steps=autoencoder_steps or pixels.steps)
    text = networks.DenoiserRecipe(seed=seed)
    text = dataclasses.replace(
        text, steps=steps or text.steps, batch_size=batch_size or text.batch_size
    )
    work = out.with_name(out.name + ".partial")
    tokenizer = networks.build_tokenizer(
        all_training_captions(), text.text_length, work / "tokenizer"
    )
    vae = training.train_autoencoder(train_images, pixels, place, work / "autoencoder.pt")
    latents = training.encode(vae, train_images, place)
    captioner = training.Captioner(train_labels, measure_traits(train_images), text)
    unet, text_encoder = training.train_denoiser(
        latents, captioner, tokenizer, text, place, work / "denoiser.pt"
    )
    pipeline = networks.assemble(tokenizer, text_encoder, vae, unet)
    # TF32 convolutions would make the figures those of this card.
    torch.backends.cudnn.allow_tf32 = False
    figures = _measure(pipeline.to(place), per_class, guidance)
    description: dict[str, Any] = {
        "kind": "text-to-image",
        "class_names": CLASS_NAMES,
        "images": "28x28 with a black border of 2 pixels",
        "trained_on": "Fashion-MNIST, 60,000 training images (Zalando SE, MIT licence)",
        "t_init": T_INIT,
        "figures": figures,
        "training": {
            "autoencoder": dataclasses.asdict(pixels),
            "denoiser": dataclasses.asdict(text),
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
    networks.save(pipeline.to("cpu"), work / "tokenizer", work / "pipeline")
    write_text(work / "pipeline" / "pecker_fast.json", json.dumps(description, indent=2) + "\n")
    os.replace(work / "pipeline", out)
    shutil.rmtree(work)
    for figure in figures:
        click.echo(
            f"{out}: {figure['captions']} captions, steps {figure['steps']}: recognised "
            f"{figure['accuracy']:.3f}"
        )


def _measure(
    pipeline: StableDiffusionPipeline, per_class: int, guidance: float
) -> list[dict[str, Any]]:
    """The accuracy on training and held-back captions in many steps, and in one."""
    from pecker_fast.data import teacher_folder
    from pecker_fast.evaluate.classifier import SmallClassifier
    from pecker_fast.models.pipeline_figures import measure

    classifier = SmallClassifier.load(teacher_folder() / "classifier").to(pipeline.device)
    return [
        measure(pipeline, classifier, captions, steps, guidance, per_class).to_dict()
        for captions, steps in (("training", 25), ("held back", 25), ("training", 1))
    ]
