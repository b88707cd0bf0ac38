"""What `sample` does once it knows what is asked for: classes of a model, prompts of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pecker_fast.cli.common import echo
from pecker_fast.datasets.pixels import to_float
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import PER_CLASS, default_steps
from pecker_fast.evaluate.grid import plot_grid
from pecker_fast.evaluate.sample_plan import SamplePlan, class_plan
from pecker_fast.evaluate.samples import write_samples
from pecker_fast.evaluate.sampling import Method, Sampler, labels_in_turn
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.progress import note

__all__ = ["Request", "draw_classes", "draw_prompts"]

PROMPT_GUIDANCE = 4.5
MOST_COLUMNS = 20  # of the grid


@dataclass(frozen=True)
class Request:
    """The options of `sample`; None where one is not given."""

    model: Path  # as it was given
    out: Path | None = None
    png: Path | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    per_class: int | None = None
    count: int | None = None
    method: Method | None = None
    steps: int | None = None
    guidance: float | None = None
    eta: float | None = None
    t_init: int | None = None
    seed: int = 0
    batch_size: int | None = None
    force: bool = False

    def labels(self, chosen: list[int]) -> Tensor:
        """What each image is to show, (N,) int64: the chosen ones in turn."""
        each = self.per_class or PER_CLASS
        return labels_in_turn(chosen, self.count or each * len(chosen))


def draw_classes(folder: Path, request: Request, device: torch.device, ranks: Ranks) -> None:
    """Images of classes of the model folder `folder`.

    Raises:
        PeckerError: an unknown class, a sampler that does not fit the model, or a place that
            cannot be written to or holds something else.
    """
    model = ModelFolder.load(folder)
    model.network.to(device)
    labels = request.labels(_chosen(model, request.classes))
    steps = request.steps
    if steps is None:
        steps = default_steps(model.kind, request.method)
    sampler = Sampler(
        steps=steps,
        seed=request.seed,
        t_init=request.t_init,
        batch_size=request.batch_size,
        method=request.method,
        guidance=request.guidance,
        eta=request.eta or 0.0,
    )
    if request.out is not None:
        _write(request.out, class_plan(model, folder, sampler, labels), ranks, request.force)
        return
    pixels = sampler.pixels(model, labels, "sampling", ranks=ranks)
    if pixels is None or request.png is None:
        return  # the first process has them all
    gone = model.figures.get("forget")  # an erased model says what it forgot
    forget = None if gone is None else model.class_index(gone)
    title = f"{request.model.name or request.model}: {sampler.describe()}, seed {sampler.seed}"
    first = torch.cat(
        [torch.where(labels == k)[0][:MOST_COLUMNS] for k in sorted(set(labels.tolist()))]
    )
    plot_grid(
        request.png, to_float(pixels[first]), labels[first], model.class_names, title,
        forget=forget, columns=min(int(labels.bincount().max()), MOST_COLUMNS),
    )  # fmt: skip
    echo(request.png)


def draw_prompts(folder: Path, request: Request, device: torch.device, ranks: Ranks) -> None:
    """Images of prompts by the pipeline folder `folder`: a grid, one row per prompt.

    Raises:
        PeckerError: options that are for class models, or that do not fit the pipeline; or the
            first process could not write the picture.
    """
    unfit = {
        "--class": request.classes,
        "--sampler": request.method,
        "--eta": request.eta,
        "--count": request.count,
        "--out": request.out,
    }
    named = [name for name, value in unfit.items() if value]
    if named or not request.prompts or request.png is None:
        raise PeckerError(
            f"sample: {folder} is a text-to-image pipeline; give it --prompt TEXT and --png FILE"
            + (f", without {named[0]}, which is for class models" if named else "")
        )
    pipeline = PipelineFolder.load(folder)
    pipeline.network.to(device).eval()
    steps = request.steps
    if steps is None:
        steps = default_steps(str(pipeline.description.get("kind")), None)
    guidance = request.guidance
    if guidance is None:
        guidance = 1.0 if steps == 1 or pipeline.has_guidance else PROMPT_GUIDANCE
    sampler = Sampler(steps, request.seed, request.t_init, request.batch_size, guidance=guidance)
    labels = request.labels(list(range(len(request.prompts)))).sort().values
    texts = [request.prompts[i] for i in labels]
    images = sampler.sample(pipeline, texts, "sampling", ranks=ranks)
    if images is not None:  # the first process has them all
        title = f"{request.model.name or request.model}: {sampler.describe()}, seed {request.seed}"
        columns = min(request.per_class or PER_CLASS, MOST_COLUMNS)
        plot_grid(request.png, images, labels, request.prompts, title, columns=columns)
    echo(request.png)


def _chosen(model: ModelFolder, classes: tuple[str, ...]) -> list[int]:
    """Class indices in the order in which they were given; all of them if none was."""
    chosen = dict.fromkeys(model.class_index(text) for text in classes)
    return list(chosen) or list(range(model.num_classes))


def _write(out: Path, plan: SamplePlan, ranks: Ranks, force: bool) -> None:
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
