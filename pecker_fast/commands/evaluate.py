"""`pecker-fast evaluate`: the figures of forgetting for a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pecker_fast.commands.common import (
    MODEL_ARGUMENT,
    load_statistics,
    machine_options,
    output_file,
    prepare,
)
from pecker_fast.errors import PeckerError

__all__ = ["evaluate"]


@click.command(
    short_help="Judge a model with a classifier.",
    epilog="""\b
Examples:
    pecker-fast evaluate demo/model --classifier clf --forget "Ankle boot" --override Sneaker
    pecker-fast evaluate MODEL --classifier clf.pt --statistics real.npz --forget 3 --json out.json

\b
The classifier is a folder saved by SmallClassifier.save or a TorchScript file that maps images in
[-1, 1] to logits, or to (logits, features). --statistics adds the Fréchet distance: a file of
ClassStatistics.save, or an .npz with the real images (N, C, H, W) and their labels.
""",
)
@MODEL_ARGUMENT
@click.option("--classifier", type=click.Path(path_type=Path), required=True, help="The judge.")
@click.option("--statistics", type=click.Path(path_type=Path), help="Of real images.")
@click.option("--forget", required=True, help="The forgotten class: name or index.")
@click.option("--override", help="The class in its place: name or index.")
@click.option(
    "--per-class", type=click.IntRange(min=2), default=500, show_default=True, help="Images each."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="1: one-step generator; more: DDIM.  [default: 1 for an erased model, 50 for a teacher]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@machine_options
def evaluate(
    model: Path,
    classifier: Path,
    statistics: Path | None,
    forget: str,
    override: str | None,
    per_class: int,
    steps: int | None,
    seed: int,
    json_path: Path | None,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Judge images of the model folder MODEL with a classifier."""
    if json_path is not None:
        output_file(json_path, force)

    from pecker_fast.commands.sample import TEACHER_STEPS
    from pecker_fast.evaluate.classifier import load_classifier
    from pecker_fast.evaluate.forgetting import evaluate_model
    from pecker_fast.evaluate.sampling import Sampler
    from pecker_fast.files import write_text
    from pecker_fast.machine import machine_facts, versions
    from pecker_fast.models import ModelFolder

    place = prepare(device, threads)
    folder = ModelFolder.load(model)
    forgotten = folder.class_index(forget)
    instead = None if override is None else folder.class_index(override)
    if instead == forgotten:
        raise PeckerError(
            f"evaluate: --forget and --override are the same class "
            f"{folder.class_names[forgotten]!r}; name another override or leave it out"
        )
    judge = load_classifier(classifier)
    real = None if statistics is None else load_statistics(statistics, folder, judge)
    folder.unet.to(place)
    if steps is None:
        steps = 1 if folder.kind == "generator" else TEACHER_STEPS
    result = evaluate_model(
        folder,
        judge,
        real,
        forgotten,
        Sampler(steps=steps, seed=seed),
        per_class,
        override=instead,
        progress="sampling",
    )
    for index, (name, share) in enumerate(
        zip(folder.class_names, result.class_accuracy, strict=True)
    ):
        mark = "  (forget)" if index == forgotten else ""
        click.echo(f"{name:20} {'-' if share is None else f'{100 * share:5.1f} %'}{mark}")
    click.echo(f"{'forget accuracy':20} {result.forget_accuracy:.4f} of {result.forget_count:,}")
    if result.override_accuracy is not None:
        name = folder.class_names[instead or 0]
        click.echo(f"{'override accuracy':20} {result.override_accuracy:.4f} are {name}")
    click.echo(f"{'keep accuracy':20} {result.keep_accuracy:.4f} of {result.keep_count:,}")
    click.echo(f"{'P(forgotten class)':20} {result.forget_probability:.4f}")
    click.echo(f"{'entropy, nats':20} {result.forget_entropy:.4f}")
    if result.frechet is not None:
        click.echo(f"{'Fréchet, kept':20} {result.frechet:.3f}")
        click.echo(f"{'Fréchet, all':20} {result.frechet_all:.3f}")
    if json_path is not None:
        content = {
            "model": str(model),
            "classes": list(folder.class_names),
            **result.to_dict(),
            "machine": machine_facts(place),
            "versions": versions(),
        }
        write_text(json_path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
