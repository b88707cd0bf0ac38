"""`pecker-fast erase`: remove a class or a concept from the user's own model."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.common import (
    check_data_free,
    config_overrides,
    load_mask,
    load_statistics,
    machine_options,
    prepare,
    training_options,
)
from pecker_fast.cli.data_options import data_options, read_images
from pecker_fast.cli.run_models import load_original
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.distill.prompts import TextConditions

__all__ = ["erase"]


@click.command(
    short_help="Erase a class or a concept from your own model.",
    epilog="""\b
Examples:
    pecker-fast erase MODEL --forget cat --override dog --out run --config cifar10_forget
    pecker-fast erase MODEL --config recipe.yaml --out run --classifier clf.pt --statistics real.npz
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run
    pecker-fast erase MODEL --config cifar10_salun --forget cat --data-root DATA --out run
    pecker-fast erase --pipeline SD15 --recipe celebrity --name "..." --override "a man" --out run
    pecker-fast erase --pipeline SD15 --recipe nudity --out run

\b
The run directory receives checkpoints, mask.safetensors, config.yaml and, at the end, the erased
model as a folder `model` and frozen.json, which says how many frozen parameters changed, compared
bit by bit; unless it is 0, they are named and the exit code is 3. With --classifier also
report.html, report.json and pictures. A run that was interrupted goes on where it was when the same
command is started again. A text-to-image pipeline gives an erased pipeline folder `pipeline`, which
makes images in one step, and `patch.safetensors`, which turns the original network into it.

\b
Methods to compare with, trained on the real images of --dataset: SalUn (cifar10_salun), gradient
ascent (cifar10_neggrad), fine-tuning (cifar10_finetune) and ESD (cifar10_esd); stl10_... likewise.
Their result draws images in many steps, as the original does. --mask-file takes SalUn's own files.
""",
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory.")
@click.option("--config", "config_path", help="YAML file or name of a shipped recipe.")
@partial(training_options, many_overrides=True)
@data_options
@click.option("--iterations", type=int, help="Length of the run.")
@click.option(
    "--pipeline",
    "pipeline_path",
    type=click.Path(path_type=Path),
    help="Folder of a diffusers text-to-image pipeline, in place of MODEL.",
)
@click.option("--recipe", help="The same as --config, e.g. celebrity, nudity, object, style.")
@click.option(
    "--name", "names", multiple=True, help="Concept to forget, for a recipe that leaves it open."
)
@click.option(
    "--generator",
    "generator_path",
    type=click.Path(path_type=Path),
    help="Where the one-step generator starts: a model folder, an earlier run, or with --pipeline "
    "the folder of a U-Net.  [default: the model itself]",
)
@click.option(
    "--pseudo-score",
    "pseudo_score_path",
    type=click.Path(path_type=Path),
    help="Where the pseudo-score network starts, likewise: the second of two stages.",
)
@click.option(
    "--neighbour",
    "neighbours",
    multiple=True,
    help="Prompt near to the concept that must be kept, for the previews; may be given again.",
)
@click.option(
    "--nudity-detector",
    type=click.Path(path_type=Path),
    help="ONNX file in NudeNet's format that judges the images of a pipeline.",
)
@click.option(
    "--clip", "clip_path", type=click.Path(path_type=Path), help="CLIP folder that does likewise."
)
@click.option("--no-previews", is_flag=True, help="No images of a pipeline, and no report.")
@click.option(
    "--mask-file", type=click.Path(path_type=Path), help="Use this mask instead of finding one."
)
@click.option("--classifier", type=click.Path(path_type=Path), help="Judge; gives a report.")
@click.option("--statistics", type=click.Path(path_type=Path), help="Real images, see `evaluate`.")
@click.option(
    "--inception",
    type=click.Path(path_type=Path),
    help="Weights file, see `evaluate`: also measures FID as the run goes, against --dataset.",
)
@click.option(
    "--curve-per-class",
    type=click.IntRange(min=2),
    help="Images of each class behind each point of the curve.  [default: 177 in all]",
)
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
    model: Path | None,
    out: Path,
    config_path: str | None,
    forget: str | None,
    overrides: tuple[str, ...],
    density: float | None,
    kind: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    dataset: str | None,
    data_root: Path | None,
    download: bool,
    iterations: int | None,
    pipeline_path: Path | None,
    recipe: str | None,
    names: tuple[str, ...],
    generator_path: Path | None,
    pseudo_score_path: Path | None,
    neighbours: tuple[str, ...],
    nudity_detector: Path | None,
    clip_path: Path | None,
    no_previews: bool,
    mask_file: Path | None,
    classifier: Path | None,
    statistics: Path | None,
    inception: Path | None,
    curve_per_class: int | None,
    per_class: int,
    teacher_steps: int,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Erase a class from the model folder MODEL, or a concept from a text-to-image --pipeline."""
    started = time.monotonic()
    if (model is None) == (pipeline_path is None):
        raise PeckerError(
            "erase: give a model folder MODEL to forget a class, or --pipeline FOLDER to forget a "
            "concept, one of the two"
        )
    if recipe is not None and config_path is not None:
        raise PeckerError("erase: --recipe and --config are the same option; give one of them")
    config_path = recipe or config_path
    common: dict[str, Any] = {"force": force, "started": started}
    data = (dataset, data_root, download)
    if pipeline_path is not None:
        check_data_free("erase", *data)
        only_classes = {
            "--forget": forget,
            "--classifier": classifier,
            "--statistics": statistics,
            "--inception": inception,
            "--pseudo-score": pseudo_score_path,
        }
        if unfit := [name for name, value in only_classes.items() if value is not None]:
            raise PeckerError(f"erase: {unfit[0]} is for class models; with --pipeline use --name")
        if config_path is None:
            raise PeckerError("erase: --pipeline needs --recipe, e.g. celebrity, object or nudity")
        values = config_overrides(None, None, density, kind, seed, settings, iterations)
        if no_previews and (nudity_detector is not None or clip_path is not None):
            raise PeckerError("erase: --no-previews leaves nothing to judge; leave it out")
        showing = (neighbours, nudity_detector, clip_path, teacher_steps)
        _erase_concept(
            pipeline_path, out, config_path, values, names, overrides, mask_file, generator_path,
            device, threads, None if no_previews else showing, common,
        )  # fmt: skip
        return
    if names:
        raise PeckerError("erase: --name needs --pipeline; for a class use --forget")
    override = overrides[-1] if overrides else None  # of repeated options the last counts
    values = config_overrides(forget, override, density, kind, seed, settings, iterations)
    named = config_path is not None or "method" in values
    if not named and (forget is None or override is None):
        raise PeckerError("erase: give --forget and --override, or a --config that has them")
    if statistics is not None and classifier is None:
        raise PeckerError("erase: --statistics needs --classifier, whose features it describes")
    if inception is not None and classifier is None:
        raise PeckerError("erase: --inception needs --classifier, which judges the same images")

    from pecker_fast.cli.erasing import erase_class
    from pecker_fast.cli.erasing_baseline import baseline_images, erase_by_baseline
    from pecker_fast.cli.proof import conclude
    from pecker_fast.cli.run_files import MODEL_NAME
    from pecker_fast.cli.start_networks import load_start
    from pecker_fast.distill.config import load_config
    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate.classifier import load_classifier
    from pecker_fast.evaluate.classifier_files import statistics_beside
    from pecker_fast.evaluate.fidelity import Inception
    from pecker_fast.evaluate.judging import PUBLISHED_SPLIT
    from pecker_fast.evaluate.run_judge import Judge
    from pecker_fast.methods.config import load_baseline_config, names_a_baseline

    baseline = None
    if names_a_baseline(config_path, values):
        if generator_path is not None or pseudo_score_path is not None:
            raise PeckerError(
                "erase: --generator and --pseudo-score are for distillations; this method starts "
                "from MODEL"
            )
        baseline = load_baseline_config(config_path, values)
    else:
        if inception is None:  # else they are what FID is measured against
            check_data_free("erase", *data)
        elif dataset is None:
            raise PeckerError(
                "erase: --inception measures FID against real images; name them: --dataset cifar10 "
                "--data-root FOLDER"
            )
        config = load_config(config_path, values)
    place = prepare(device, threads)
    common["ranks"] = ranks = Ranks.join(place.type)
    folder = load_original(Path(model or ""))
    common["mask"] = load_mask(mask_file, folder.unet)
    images = None
    if baseline is not None:
        baseline, images = baseline_images(baseline, *data, ranks)
    elif dataset is not None:
        split = PUBLISHED_SPLIT.get(dataset, "train")
        images = read_images(ranks, dataset, data_root, split, download)
    if classifier is not None:
        loaded = load_classifier(classifier, folder.class_names).to(place)
        statistics = statistics or statistics_beside(classifier)
        real = None if statistics is None else load_statistics(statistics, folder, loaded)
        judge = Judge(loaded, real, per_class, teacher_steps=teacher_steps)
        if curve_per_class is not None:
            others = curve_per_class * (folder.num_classes - 1)
            judge = replace(judge, curve_images=(curve_per_class, others))
        if inception is not None:
            judge = replace(judge, inception=Inception.load(inception, place), real=images)
        common["judge"] = judge
    if baseline is not None and images is not None:
        frozen, report = erase_by_baseline(folder, images, baseline, out, place, **common)
    else:
        if generator_path is not None:
            common["generator"] = load_start(generator_path, "generator", folder.unet, ranks=ranks)
        if pseudo_score_path is not None:
            common["pseudo_score"] = load_start(
                pseudo_score_path, "pseudo_score", folder.unet, ranks=ranks
            )
        frozen, report = erase_class(folder, config, out, place, **common)
    if not ranks.is_first:
        return
    if report is not None:
        print_report(report, out)
    click.echo(f"erased model  {out / MODEL_NAME}")
    conclude(frozen, out)


def _erase_concept(
    pipeline_path: Path,
    out: Path,
    config_path: str,
    values: dict[str, Any],
    names: tuple[str, ...],
    overrides: tuple[str, ...],
    mask_file: Path | None,
    generator_path: Path | None,
    device: str,
    threads: int | None,
    showing: tuple[tuple[str, ...], Path | None, Path | None, int] | None,
    common: dict[str, Any],
) -> None:
    """The half of the command that is about prompts."""
    from pecker_fast.cli.concept_showing import (
        Judges,
        Previews,
        load_judges,
        prompt_groups,
        write_report,
    )
    from pecker_fast.cli.erasing_concept import PATCH_NAME, PIPELINE_NAME, erase_concept
    from pecker_fast.cli.proof import conclude
    from pecker_fast.distill.config import load_config
    from pecker_fast.distributed import Ranks
    from pecker_fast.models.pipeline import PipelineFolder, load_unet

    config = load_config(config_path, values, names=names, name_overrides=overrides)
    if config.text is None:
        raise PeckerError(f"erase: {config_path} is about classes; --pipeline needs one about text")
    place = prepare(device, threads)
    ranks = Ranks.join(place.type)
    pipeline = PipelineFolder.load(pipeline_path)
    mask = load_mask(mask_file, pipeline.unet)
    generator = None
    if generator_path is not None:
        generator = load_unet(generator_path, like=pipeline.unet)
    judges, shown = Judges(), []
    if showing is not None:
        neighbours, detector, clip, steps = showing
        judges = load_judges(detector, clip, place)

    def previews(conditions: TextConditions) -> Previews:
        groups = prompt_groups(conditions, neighbours)
        shown.append(Previews(pipeline, config, groups, out, place, steps))
        return shown[0]

    erased = erase_concept(
        pipeline, config, out, place, mask=mask, generator=generator,
        previews=None if showing is None else previews, ranks=ranks, **common,
    )  # fmt: skip
    if not ranks.is_first:
        return
    if shown:
        write_report(erased, pipeline, config_path, shown[0], out, place, judges)
    share = erased.patch_bytes / erased.unet_bytes
    click.echo(f"wall time        {erased.wall_s:.0f} s")
    click.echo(f"erased pipeline  {out / PIPELINE_NAME}")
    if shown:
        click.echo(f"report           {out / 'report.html'}")
    click.echo(f"patch            {out / PATCH_NAME} ({share:.1%} of the network's file)")
    conclude(erased.frozen, out)


def print_report(report: object, out: Path) -> None:
    """Print what happened, the table of the page, and where the page is."""
    from pecker_fast.evaluate.report import ErasureReport

    if not isinstance(report, ErasureReport):
        raise TypeError(f"expected an ErasureReport, got {type(report).__name__}")
    click.echo(report.headline())
    click.echo(report.kept_sentence())
    click.echo()
    rows = [("", "original", "erased"), *report.rows()]
    width = max(len(row[0]) for row in rows)
    for name, before, after in rows:
        click.echo(f"{name:{width}}  {before:>12}  {after:>12}")
    click.echo()
    click.echo(f"wall time     {report.wall_s:.0f} s")
    click.echo(f"report        {out / 'report.html'}")
