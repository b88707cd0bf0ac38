"""`pecker-fast evaluate`: the figures of forgetting for a model folder or for images on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pecker_fast.cli.common import machine_options, output_file, prepare
from pecker_fast.cli.data_options import data_options
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.cli.judging import Subject
    from pecker_fast.evaluate.sampling import Method

__all__ = ["evaluate"]

PER_CLASS = 500


@click.command(
    short_help="Judge a model, or images, by a classifier and by FID.",
    epilog="""\b
Examples:
    pecker-fast evaluate demo/model --classifier clf --forget "Ankle boot" --override Sneaker
    pecker-fast evaluate MODEL --classifier clf.pt --statistics real.npz --forget 3 --json out.json
    pecker-fast evaluate RUN --classifier clf --per-class 5000 --dataset cifar10 --data-root DATA
        --inception INCEPTION.pth --samples RUN/samples --json RUN/evaluate.json
    pecker-fast evaluate --images FOLDER --real real.npz --inception INCEPTION.pth --forget 0

\b
The classifier is a folder that train-classifier wrote, the state dict of torchvision's resnet34 as
the train_classifier.py of SA, SalUn and SFD saves it (cifar10_resnet34.pth), or a TorchScript file
that maps images in [-1, 1] to logits, or to (logits, features). --statistics adds the Fréchet
distance in its features: a file of ClassStatistics.save, or an .npz with the real images
(N, C, H, W) and their labels.

\b
Real images (--real or --dataset) add FID, KID, inception score, precision and recall of the kept
classes, by torch-fidelity. Its Inception weights are a file that you give; nothing is downloaded.
Drawn images are rounded to 8 bits a channel, as a PNG holds them, before anything judges them.
""",
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Judge these instead of a model: a folder, or an .npz.",
)
@click.option("--classifier", type=click.Path(path_type=Path), help="The judge.")
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    help="Of real images.  [default: those in the folder of the classifier]",
)
@click.option(
    "--forget",
    help="The forgotten class: name or index.  [default: what an erased model says]",
)
@click.option("--override", help="The class in its place: name or index.")
@click.option("--real", type=click.Path(path_type=Path), help="Real images: a folder, or an .npz.")
@data_options
@click.option(
    "--inception", type=click.Path(path_type=Path), help="File of the Inception weights, for FID."
)
@click.option(
    "--per-class", type=click.IntRange(min=2), help=f"Images each.  [default: {PER_CLASS}]"
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
@click.option("--seed", type=int, help="Seed of the noise.  [default: 0]")
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help="Folder that keeps the images; an evaluation that was stopped goes on with them.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures.")
@click.option("--force", is_flag=True, help="Replace a file that exists, or other --samples.")
@machine_options
def evaluate(
    model: Path | None,
    images: Path | None,
    classifier: Path | None,
    statistics: Path | None,
    forget: str | None,
    override: str | None,
    real: Path | None,
    dataset: str | None,
    data_root: Path | None,
    download: bool,
    inception: Path | None,
    per_class: int | None,
    steps: int | None,
    method: Method | None,
    guidance: float | None,
    seed: int | None,
    samples: Path | None,
    json_path: Path | None,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Judge images of MODEL, a model folder or a run, or images on disk."""
    drawing = (per_class, steps, method, guidance, seed, samples)
    _check_subject(model, images, any(value is not None for value in drawing))
    _check_judges(classifier, statistics, override)
    _check_real(classifier, real, dataset, inception)
    if json_path is not None:
        output_file(json_path, force)

    from pecker_fast.cli.judging import Judges, Subject, read_real
    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate.judgement import Judgement
    from pecker_fast.files import write_text
    from pecker_fast.machine import machine_facts, versions

    place = prepare(device, threads)
    ranks = Ranks.join(place.type)
    if images is not None:
        if not ranks.is_first:
            return  # images on disk are judged by the first process alone
        ranks, subject = Ranks(), Subject.of_files(images)
    else:
        assert model is not None  # checked above
        subject = _drawing(model, per_class or PER_CLASS, steps, method, guidance, seed or 0)
    forget = subject.forgotten() if forget is None else forget
    if classifier is not None and forget is None:
        raise PeckerError("evaluate: --classifier needs --forget CLASS, the forgotten class")
    forgotten = None if forget is None else subject.class_index(forget)
    instead = None if override is None else subject.class_index(override)
    if forgotten is not None and instead == forgotten:
        raise PeckerError(
            f"evaluate: --forget and --override are the same class "
            f"{subject.class_names[forgotten]!r}; name another override or leave it out"
        )
    judges = Judges()

    def load() -> None:  # before hours of drawing: what is wrong with a file comes out now
        nonlocal judges
        shown = read_real(real, dataset, data_root, download)
        judges = Judges.load(subject, classifier, statistics, inception, shown, place)
        judges.check(subject, forgotten)

    ranks.first(load)
    judged = subject.draw(place, ranks, samples, force)
    if judged is None:
        return  # the first process judges what all have drawn
    result = Judgement(
        source=subject.source,
        from_files=model is None,
        class_names=subject.class_names,
        forget=forgotten,
        drawn=subject.drawn,
        network=subject.network(),
        trained=subject.trained(),
        evaluation=judges.evaluate(judged, subject, forgotten, instead),
        fidelity=judges.fidelity(judged, subject, forgotten),
        machine=machine_facts(place),
        processes=ranks.size,
        versions=versions(),
    )
    for line in result.lines():
        click.echo(line)
    if json_path is not None:
        content = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(json_path, content + "\n")


def _check_subject(model: Path | None, images: Path | None, draws: bool) -> None:
    if (model is None) == (images is None):
        raise PeckerError(
            "evaluate: give a model folder MODEL or --images FOLDER, and not both: the one draws "
            "images, the other has them"
        )
    if images is not None and draws:
        raise PeckerError(
            "evaluate: --per-class, --steps, --sampler, --guidance, --seed and --samples say how a "
            f"model draws, but {images} has its images already; leave them out"
        )


def _check_judges(classifier: Path | None, statistics: Path | None, override: str | None) -> None:
    for option, value in (("--statistics", statistics), ("--override", override)):
        if value is not None and classifier is None:
            raise PeckerError(f"evaluate: {option} needs --classifier")


def _check_real(
    classifier: Path | None, real: Path | None, dataset: str | None, inception: Path | None
) -> None:
    if real is not None and dataset is not None:
        raise PeckerError("evaluate: give the real images as --real or as --dataset, not both")
    if real is None and dataset is None:
        if inception is not None:
            raise PeckerError(
                "evaluate: --inception needs real images: --real FOLDER, or --dataset NAME with "
                "--data-root"
            )
        if classifier is None:
            raise PeckerError(
                "evaluate: nothing to judge by; give --classifier, or real images (--real or "
                "--dataset) and --inception"
            )
    elif inception is None:
        from pecker_fast.evaluate.fidelity import WEIGHTS_WANTED

        raise PeckerError(f"evaluate: FID needs --inception FILE, {WEIGHTS_WANTED}")


def _drawing(
    path: Path,
    per_class: int,
    steps: int | None,
    method: Method | None,
    guidance: float | None,
    seed: int,
) -> Subject:
    """The model at `path` and how it draws."""
    from pecker_fast.cli.judging import Subject
    from pecker_fast.cli.sample_defaults import default_steps
    from pecker_fast.evaluate.sampling import Sampler
    from pecker_fast.models import ModelFolder
    from pecker_fast.runs.finding import find_model

    model = ModelFolder.load(find_model(path))
    if steps is None:
        steps = default_steps(model.kind, method)
    sampler = Sampler(steps=steps, seed=seed, method=method, guidance=guidance or 0.0)
    return Subject.of_model(path, sampler, model, per_class)
