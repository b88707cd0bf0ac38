"""Images of the rows of a prompt file that a pipeline is to draw, in a folder for each group."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pecker_fast.datasets.prompt_files import PromptFile, PromptRow
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import default_steps
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.evaluate.reverse_steps import check_settings
from pecker_fast.evaluate.sample_plan import SamplePlan, numbered_files
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.digest import fingerprint

__all__ = ["files_of_rows", "prompt_plan"]

_MOST_IMAGES = 1_000_000
GUIDANCE = 7.5  # of a many-step pipeline where nobody says, as diffusers'


def prompt_plan(
    pipeline: PipelineFolder,
    path: str,
    told: PromptFile,
    each: int,
    *,
    steps: int | None,
    guidance: float | None,
    negative: str,
    t_init: int | None,
    seed: int,
    batch_size: int | None,
    device: torch.device,
) -> tuple[SamplePlan, Sequence[PromptRow]]:
    """Which images of prompts are drawn and how, and the row of each.

    The options are those of `judge_prompts`, and so is what None stands for. `path` is where the
    pipeline was read from, for the record.

    Raises:
        PeckerError: settings that do not fit the pipeline.
    """
    if guidance is not None:
        check_settings(seed, guidance)
    if (count := len(told.rows) * each) > _MOST_IMAGES:
        raise PeckerError(f"{told.source}: {count:,} images, at most {_MOST_IMAGES:,} are drawn")
    rows = [row for row in told.rows for _ in range(each)]
    if steps is None:
        steps = default_steps(str(pipeline.description.get("kind")), None)
    sampler = PipelineSampler(pipeline, device, batch_size)
    network = pipeline.network.to(device).eval()
    if each > 1 and rows[0].save_as is not None:
        raise PeckerError(f"{told.source}: save_as names one image a row; leave out --per-prompt")
    folders, files = files_of_rows(rows, told.groups)
    seeds: int | list[int] = seed
    if rows[0].seed is not None:  # then all have one; further images of a row take those after it
        seeds = [(row.seed or 0) + index % each for index, row in enumerate(rows)]
    scales: float | list[float] = 1.0  # the one step of a generator takes no guidance
    if steps > 1:
        scales = (1.0 if pipeline.has_guidance else GUIDANCE) if guidance is None else guidance
        if guidance is None and rows[0].guidance is not None and not pipeline.has_guidance:
            scales = [GUIDANCE if row.guidance is None else row.guidance for row in rows]
    start = sampler.t_init if t_init is None else t_init
    draw = partial(
        sampler.batches, network, [row.prompt for row in rows], seeds, steps,
        t_init=start, guidance=scales, negative=negative,
    )  # fmt: skip
    draw(only=())  # what is wrong with a setting comes out now

    def batches(only: Collection[int], title: str | None) -> Iterator[tuple[slice, Tensor]]:
        for part, latents in draw(only=only, progress=title):
            yield part, sampler.images(latents) * 2 - 1

    facts = {
        "count": len(rows),
        "folders": folders,
        "class_names": list(told.groups),
        "prompts": told.digest,
        "per_prompt": each,
        "model": {
            "path": path,
            "kind": pipeline.description.get("kind"),
            "iterations": pipeline.description.get("iterations"),
            "weights": fingerprint(pipeline.network),
        },
        "sampler": {
            "steps": steps,
            "guidance": scales if isinstance(scales, float) else "of each row",
            "negative": negative,
            "seed": seeds if isinstance(seeds, int) else "of each row",
            "t_init": start if steps == 1 else None,
            "batch_size": sampler.batch_size,
        },
    }
    size = min(sampler.batch_size, len(rows))
    labels = torch.tensor([told.groups.index(row.group) for row in rows])
    return SamplePlan(facts, files, labels, size, batches, device), rows


def files_of_rows(
    rows: Sequence[PromptRow], groups: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """A folder for each group, and the file of each row's image: numbered, or as `save_as` says.

    Result as of `numbered_files`.
    """
    labels = torch.tensor([groups.index(row.group) for row in rows])
    folders, files = numbered_files(labels, groups)
    named = [
        file if row.save_as is None else f"{file.split('/')[0]}/{row.save_as}"
        for row, file in zip(rows, files, strict=True)
    ]
    return folders, named
