"""`pecker-fast sample`: images of a model, as a picture or a folder of PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli import shared
from pecker_fast.cli.common import echo, prepare
from pecker_fast.cli.shared import INPUT, PATH, command, flag, option
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import BATCH_SIZE, PER_CLASS, default_steps
from pecker_fast.files import check_output_file
from pecker_fast.progress import note
from pecker_fast.runs.finding import find_model, find_pipeline

if TYPE_CHECKING:
    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate.sample_plan import SamplePlan

__all__ = ["sample"]

PROMPT_GUIDANCE = 4.5
MOST_COLUMNS = 20  # of the grid


@command(
    click.argument("model", type=INPUT),
    option("--out", "Folder of PNG files; resumes.", PATH),
    option("--png", "Write a grid, one row per class.", PATH),
    option(
        "--class classes", "Only this, by name or index; may be given again.", multiple=True
    ),
    option(
        "--prompt prompts", "For a text-to-image pipeline; may be given again.", multiple=True
    ),
    option("--per-class", f"Images of each class or prompt.  [default: {PER_CLASS}]", least=1),
    option("--count", "Images in all, instead of --per-class.", least=1),
    shared.sampler,
    option(
        "--guidance", "Classifier-free, in many steps.  [default: 0; of prompts 4.5]", float
    ),
    option("--seed", "Seed of the noise.", int, default=0),
    option(
        "--batch-size", f"Images per forward pass.  [default: {BATCH_SIZE}; of prompts by their "
        "size]", least=1,
    ),
    flag("--force", "Replace what exists."),
    shared.machine,
    shared.quiet,
    examples="""
    pecker-fast sample demo-run/model --png after.png
    pecker-fast sample teacher --steps 50 --per-class 4 --png before.png
    pecker-fast sample demo-run/model --class Sneaker --per-class 1000 --out sneakers
    pecker-fast sample TEACHER --steps 1000 --eta 1 --guidance 2 --out drawn
    torchrun --nproc-per-node 8 -m pecker_fast.cli sample RUN --count 50000 --out samples
    pecker-fast sample run/pipeline --prompt "a photo of a church" --per-class 4 --png church.png

--out FOLDER gets a PNG for each image, one sub-folder per class, and samples.json, which says
what drew them; --out FILE.npz gets arr_0 (N, H, W, C) uint8, labels, class_names, provenance.
Both go on where they were stopped when the same command is started again, and end with the
same images, on any number of processes.
""",
)  # fmt: skip
def sample(
    model: Path,
    out: Path | None,
    png: Path | None,
    classes: tuple[str, ...],
    prompts: tuple[str, ...],
    per_class: int | None,
    count: int | None,
    device: str,
    threads: int | None,
    force: bool,
    **how: Any,
) -> None:
    """Draw images from a model, a pipeline, or a run."""
    pipeline = find_pipeline(model)
    unfit = {"--class": classes, "--sampler": how["method"], "--eta": how["eta"],
             "--count": count, "--out": out}  # fmt: skip
    unfit_given = next((name for name, value in unfit.items() if value), None)
    for wrong, message in (
        (out is None and png is None, "nowhere to write to; give --out FOLDER or --png FILE"),
        (out is not None and png is not None, "--out is for many images, --png for few; give one"),
        (count is not None and per_class is not None,
         "--count and --per-class both say how many images; give one"),
        (pipeline is None and prompts, f"{model} is a class model; --prompt is for pipelines"),
        (pipeline is not None and (unfit_given or not prompts),
         (f"{model} is a text-to-image pipeline; give it --prompt TEXT and --png FILE"
          + (f", without {unfit_given}, which is for class models" if unfit_given else ""))),
    ):  # fmt: skip
        if wrong:
            raise PeckerError(f"sample: {message}")
    if png is not None:
        check_output_file(png, force)
    folder = find_model(model) if pipeline is None else pipeline
    place = prepare(device, threads)

    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate.grid import plot_grid
    from pecker_fast.evaluate.sample_plan import class_plan
    from pecker_fast.evaluate.sampling import Sampler, labels_in_turn
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

    ranks = Ranks.join(place.type)
    loaded: Any = (ModelFolder if pipeline is None else PipelineFolder).load(folder)
    loaded.network.to(place).eval()
    if how["steps"] is None:
        how["steps"] = default_steps(str(loaded.card.get("kind")), how["method"])
    if how["guidance"] is None and pipeline is not None:
        built_in = how["steps"] == 1 or loaded.has_guidance
        how["guidance"] = 1.0 if built_in else PROMPT_GUIDANCE
    sampler = Sampler(**{**how, "eta": how["eta"] or 0.0})
    chosen = list(dict.fromkeys(loaded.class_index(text) for text in classes))
    names = prompts or loaded.class_names
    chosen = chosen or list(range(len(names)))
    labels = labels_in_turn(chosen, count or (per_class or PER_CLASS) * len(chosen))
    if out is not None:
        _write(out, class_plan(loaded, folder, sampler, labels), ranks, force)
        return
    labels = labels.sort().values if prompts else labels
    asked = [prompts[label] for label in labels] if prompts else labels
    images = sampler.sample(loaded, asked, "sampling", ranks=ranks)
    if images is not None and png is not None:  # the first process has them all
        title = f"{model.name or model}: {sampler.describe()}, seed {sampler.seed}"
        gone = loaded.card.get("forget")  # an erased class model says which
        forget = loaded.class_index(gone) if isinstance(gone, (str, int)) else None
        plot_grid(png, images, labels, names, title, forget, MOST_COLUMNS)
    echo(png)


def _write(out: Path, plan: SamplePlan, ranks: Ranks, force: bool) -> None:
    from pecker_fast.evaluate.samples import write_samples

    try:
        missing = write_samples(out, plan, ranks, "sampling", force)
    except KeyboardInterrupt:
        echo(err=True)
        echo("start the same command again to go on", err=True)
        raise
    if missing < len(plan.files):
        there = len(plan.files) - missing
        note(f"{there:,} of {len(plan.files):,} images were there before")
    echo(out)
