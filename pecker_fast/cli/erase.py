"""`pecker-fast erase`: remove a class or a concept from the user's own model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.common import (
    INPUT,
    PATH,
    SOURCE,
    config_values,
    data_options,
    hub_options,
    judges,
    prepare,
    run_options,
    training_options,
)
from pecker_fast.cli.output import (
    dry_run_option,
    json_option,
    print_config_option,
    quiet_option,
    result,
    say_config,
)
from pecker_fast.cli.torchrun import is_first
from pecker_fast.errors import PeckerError
from pecker_fast.files import shown
from pecker_fast.progress import note
from pecker_fast.runs.finding import is_repository

if TYPE_CHECKING:
    from pecker_fast.erasure.request import Request
    from pecker_fast.erasure.run import Erased

__all__ = ["carried_out", "erase", "say"]

_images = partial(click.option, type=click.IntRange(2, 1_000_000))


@click.command(
    short_help="Erase a class or a concept from your own model.",
    epilog="""\b
Examples:
    pecker-fast erase MODEL --forget cat --override dog --out run --config cifar10_forget
    pecker-fast distill MODEL --out one-step
    pecker-fast erase MODEL --from one-step --forget cat --override dog --out run
    pecker-fast erase MODEL --keep-steps --forget cat --override dog --out run
    pecker-fast erase MODEL --forget cat --override dog --forget car --override ship --out run
    pecker-fast erase MODEL --config recipe.yaml --out run --classifier clf --statistics real.npz
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run
    pecker-fast erase MODEL --config cifar10_salun --forget cat --data-root DATA --out run
    pecker-fast erase --pipeline SD15 --recipe celebrity --name "..." --override "a man" --out run
    pecker-fast erase --pipeline SD15 --recipe nudity --out run
    pecker-fast erase --pipeline SD15 --recipe nudity --prompts i2p.csv --nudity-detector 320n.onnx
        --out run
    pecker-fast erase --pipeline owner/name --variant fp16 --recipe nudity --out run
    pecker-fast erase --pipeline SD15 --keep-steps --recipe nudity --out run
    pecker-fast erase --pipeline SD15 --recipe nudity --out run --dry-run

\b
The run directory receives checkpoints, mask.safetensors, config.yaml and, at the end, the erased
model as a folder `model` and frozen.json, which says how many frozen parameters changed, compared
bit by bit; unless it is 0, they are named and the exit code is 3. With --classifier also
report.html, report.json and pictures. A run that was interrupted goes on where it was when the same
command is started again. A text-to-image pipeline gives an erased pipeline folder `pipeline`, which
makes images in one step, and `patch.safetensors`, which turns the original network into it.

\b
Methods to compare with, trained on the real images of --dataset: SalUn (--config cifar10_salun);
with --set method=negative_gradient, fine_tune or esd gradient ascent, fine-tuning and ESD.
Their result draws images in many steps, as the original does. --mask-file takes SalUn's own files.
""",
)
@click.argument("model", type=SOURCE, required=False)
@click.option("--out", type=PATH, required=True, help="Run directory.")
@click.option("--config", help="YAML file or name of a shipped recipe.")
@training_options
@data_options
@click.option("--iterations", type=int, help="Length of the run.")
@click.option(
    "--pipeline",
    type=SOURCE,
    help="Folder of a diffusers text-to-image pipeline, or its id owner/name on the hub, in place "
    "of MODEL.",
)
@click.option(
    "--pipeline-config",
    type=INPUT,
    help="Folder of a pipeline of the same kind, where --pipeline is a checkpoint in one file.",
)
@hub_options
@click.option("--recipe", help="The same as --config, e.g. celebrity, nudity, object, style.")
@click.option(
    "--name", "names", multiple=True, help="Concept to forget, for a recipe that leaves it open."
)
@click.option(
    "--generator",
    type=INPUT,
    help="Where the one-step generator starts: a model folder, an earlier run, or with --pipeline "
    "the folder of a U-Net.  [default: the model itself]",
)
@click.option(
    "--pseudo-score",
    type=INPUT,
    help="Where the pseudo-score network starts, likewise: the second of two stages.",
)
@click.option(
    "--from",
    "first_stage",
    type=INPUT,
    help="Where both start: what `pecker-fast distill` has made of MODEL.",
)
@click.option(
    "--neighbour",
    "neighbours",
    multiple=True,
    help="Prompt near to the concept that must be kept, for the previews; may be given again.",
)
@click.option(
    "--nudity-detector",
    type=INPUT,
    help="ONNX file in NudeNet's format that judges the images of a pipeline.",
)
@click.option("--clip", type=INPUT, help="CLIP folder that does likewise.")
@click.option(
    "--prompts",
    type=INPUT,
    help="Judge the erasure of a pipeline by images of these, see `attack`; with one of "
    "--classifier, --clip, --nudity-detector and --faces.",
)
@click.option("--faces", help="Recogniser of faces, trusted:MODULE:OBJECT.")
@click.option(
    "--keep-steps",
    is_flag=True,
    help="The erased model draws in many steps, as the original does, instead of in one. With "
    "--pipeline any recipe says the prompts.",
)
@click.option("--no-previews", is_flag=True, help="No images of a pipeline, and no report.")
@click.option("--mask-file", "mask", type=INPUT, help="Use this mask instead of finding one.")
@click.option(
    "--classifier",
    "classifiers",
    type=INPUT,
    multiple=True,
    help="Judge, see `evaluate`; gives a report. Given again: a second one.",
)
@click.option("--statistics", type=INPUT, help="Real images, see `evaluate`.")
@_images(
    "--curve-per-class",
    help="Images of each class behind each point of the curve.  [default: 177 in all]",
)
@_images(
    "--per-class", default=200, show_default=True, help="Images of each class in the evaluation."
)
@click.option(
    "--teacher-steps",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="DDIM steps of the original model in the evaluation, and of one that keeps its steps.",
)
@click.option("--push", metavar="OWNER/NAME", help="Upload the erased model to the hub.")
@run_options
@dry_run_option
@print_config_option
@json_option
@quiet_option
def erase(device: str, threads: int | None, **options: Any) -> None:
    """Erase a class from the model folder MODEL, or a concept from a text-to-image --pipeline."""
    from pecker_fast.erasure.request import Request

    started = time.monotonic()
    push = options.pop("push")
    if push is not None and not is_repository(push):
        raise PeckerError(f"--push {shown(push)}: is no id of the hub; expected owner/name")
    dry, printing = options.pop("dry_run"), options.pop("print_config")
    recipe, config = options.pop("recipe"), options.pop("config")
    if recipe is not None and config is not None:
        raise PeckerError("erase: --recipe and --config are the same option; give one of them")
    request = Request(
        config=config if recipe is None else recipe,
        settings=config_values(options),
        previews=not options.pop("no_previews"),
        device=device,
        started=started,
        **judges(options.pop("classifiers")),
        **options,
    )
    if (found := carried_out(request, threads, dry, printing)) is not None:
        say(found)
        if push is not None and is_first():
            note(f"pushed to {found.push_to_hub(push)}")


def carried_out(
    request: Request, threads: int | None, dry: bool, printing: bool
) -> Erased[Any] | None:
    """Check and do what is asked for; None where only its settings, or what it takes, are said."""
    if printing:
        say_config(request.read_config())
        return None
    request.check()
    prepare(str(request.device), threads)

    from pecker_fast.erasure.api import dry_run, run

    if not dry:
        return run(request)
    found = dry_run(request)
    result(found.lines(), found.to_dict)
    return None


def say(erasure: Erased[Any]) -> None:
    """Print what happened, what was frozen, the figures, and where everything is.

    Raises:
        FrozenChangedError: a frozen entry has changed.
    """
    from pecker_fast.runs.outputs import PATCH_NAME

    paths = {erasure.kind: erasure.out / erasure.kind}
    if erasure.report is not None:
        paths["report"] = erasure.out / "report.html"
    if (erasure.out / PATCH_NAME).is_file():
        paths["patch"] = erasure.out / PATCH_NAME

    def content() -> dict[str, Any]:
        figures = (erasure.facts if erasure.report is None else erasure.report).to_dict()
        return {"out": erasure.out, "paths": paths, **figures}

    result(_lines(erasure, paths), content)
    if is_first():
        erasure.frozen.require_unchanged(erasure.out)


def _lines(erasure: Erased[Any], paths: Mapping[str, Path]) -> Iterator[str]:
    from pecker_fast.erasure.concepts import patch_sizes

    report = erasure.report
    if report is not None:
        yield report.headline
        if kept := report.kept_sentence:
            yield kept
    yield erasure.frozen.sentence()
    if report is not None:
        for table in report.tables[:1]:
            rows = [[column.lower() for column in table.columns], *table.rows]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            yield ""
            for row in rows:
                cells = zip(row, widths, strict=True)
                yield "  ".join(f"{cell:{width}}" for cell, width in cells).rstrip()
            yield ""
    facts = erasure.facts if report is None else report.run
    yield f"wall time        {facts.wall_s:.0f} s"
    if report is not None:
        yield f"report           {paths['report']}"
    yield f"erased {erasure.kind:9} {paths[erasure.kind]}"
    if "patch" in paths:
        patch, network = patch_sizes(erasure.out, erasure.model.architecture.denoiser)
        share = f"{patch / network:.1%} of the network's file"
        yield f"patch            {paths['patch']} ({share})"
