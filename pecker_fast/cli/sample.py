"""`pecker-fast sample`: images of a model, as a picture or a folder of PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import MODEL_ARGUMENT, PATH, machine_options, prepare, sampler_options
from pecker_fast.cli.output import quiet_option
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import BATCH_SIZE, PER_CLASS
from pecker_fast.files import check_output_file
from pecker_fast.runs.finding import find_model, find_pipeline

__all__ = ["sample"]


@click.command(
    short_help="Draw images from a model.",
    epilog="""\b
Examples:
    pecker-fast sample demo-run/model --png after.png
    pecker-fast sample teacher --steps 50 --per-class 4 --png before.png
    pecker-fast sample demo-run/model --class Sneaker --per-class 1000 --out sneakers
    pecker-fast sample RUN --per-class 5000 --out samples
    pecker-fast sample TEACHER --steps 1000 --eta 1 --guidance 2 --out drawn
    torchrun --nproc-per-node 8 -m pecker_fast.cli sample RUN --count 50000 --out samples
    pecker-fast sample run/pipeline --prompt "a photo of a church" --per-class 4 --png church.png

\b
--out FOLDER gets a PNG for each image, one sub-folder per class, and samples.json, which says
what drew them; --out FILE.npz gets arr_0 (N, H, W, C) uint8, labels, class_names, provenance.
Both go on where they were stopped when the same command is started again, and end with the
same images, on any number of processes.
""",
)
@MODEL_ARGUMENT
@click.option("--out", type=PATH, help="Folder of PNG files; resumes.")
@click.option("--png", type=PATH, help="Write a grid, one row per class.")
@click.option(
    "--class", "classes", multiple=True, help="Only this, by name or index; may be given again."
)
@click.option(
    "--prompt", "prompts", multiple=True, help="For a text-to-image pipeline; may be given again."
)
@click.option(
    "--per-class",
    type=click.IntRange(min=1),
    help=f"Images of each class or prompt.  [default: {PER_CLASS}]",
)
@click.option("--count", type=click.IntRange(min=1), help="Images in all, instead of --per-class.")
@sampler_options
@click.option(
    "--guidance",
    type=float,
    help="Classifier-free, in many steps.  [default: 0; of prompts 4.5]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help=f"Images per forward pass.  [default: {BATCH_SIZE}; of prompts by their size]",
)
@click.option("--force", is_flag=True, help="Replace what exists.")
@machine_options
@quiet_option
def sample(model: Path, device: str, threads: int | None, **options: Any) -> None:
    """Draw images from MODEL: a model folder, a pipeline, or the run that made one."""
    out, png = options["out"], options["png"]
    if out is None and png is None:
        raise PeckerError("sample: nowhere to write to; give --out FOLDER or --png FILE")
    if out is not None and png is not None:
        raise PeckerError("sample: --out is for many images, --png for few; give one")
    if options["count"] is not None and options["per_class"] is not None:
        raise PeckerError("sample: --count and --per-class both say how many images; give one")
    if png is not None:
        check_output_file(png, options["force"])
    pipeline = find_pipeline(model)
    if pipeline is None and options["prompts"]:
        raise PeckerError(f"sample: {model} is a class model; --prompt is for pipelines")
    folder = find_model(model) if pipeline is None else pipeline
    place = prepare(device, threads)

    from pecker_fast.cli.drawing import Request, draw_classes, draw_prompts
    from pecker_fast.distributed import Ranks

    draw = draw_classes if pipeline is None else draw_prompts
    draw(folder, Request(model, **options), place, Ranks.join(place.type))
