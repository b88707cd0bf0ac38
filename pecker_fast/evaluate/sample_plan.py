"""What is to be drawn, before it is: which images, in which files, and all that decides them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pecker_fast.datasets.prompt_files import PromptFile, PromptRow
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sampling import Labels, Sampler
from pecker_fast.runs.digest import fingerprint

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["GUIDANCE", "SamplePlan", "class_plan", "files_of_rows", "numbered_files", "prompt_plan"]

GUIDANCE = 7.5  # of a many-step pipeline where nobody says, as diffusers'
_MOST_IMAGES = 1_000_000


@dataclass(frozen=True)
class SamplePlan:
    """Images that are to be drawn and written."""

    # What decides the images, as plain types. `folders` has the sub-folders, and of each the
    # `index` of its class, its `name`, and the `count` of its images.
    facts: Mapping[str, Any]
    files: Sequence[str]  # path of each image within the folder of the samples
    labels: Tensor  # (N,) int64, the class or the group of each image
    batch_size: int  # batch k holds the images from k * batch_size on
    # (numbers of the batches to draw, title of a progress bar or None) -> which images, and (n, C,
    # H, W) in [-1, 1] on the CPU, batch by batch.
    batches: Callable[[Collection[int], str | None], Iterator[tuple[slice, Tensor]]]
    device: torch.device  # where they are drawn


def class_plan(
    model: ModelFolder, path: str | os.PathLike[str], sampler: Sampler, labels: Tensor
) -> SamplePlan:
    """Plan images of a model's classes, one for each of the labels (N,) int64.

    Raises:
        PeckerError: the model has no such class, or its images can be no PNGs.
    """
    if model.image_shape[0] not in (1, 3):
        raise PeckerError(f"PNG: images need 1 or 3 channels, got {model.image_shape[0]}")
    folders, files = numbered_files(labels, model.class_names)
    about = {
        "class_names": list(model.class_names),
        "image_shape": list(model.image_shape),
        "forgotten": model.figures.get("forget"),
    }
    return _plan(model, path, sampler, labels, folders, files, labels, about)


def prompt_plan(
    pipeline: PipelineFolder,
    path: str | os.PathLike[str],
    told: PromptFile,
    each: int,
    sampler: Sampler,
) -> tuple[SamplePlan, Sequence[PromptRow]]:
    """Plan `each` images of every row of a prompt file, and return the row of each image.

    Rows may have seeds, which go before the sampler's, and guidance, which is asked for where the
    sampler says none: else it is 7.5 in many steps.

    Raises:
        PeckerError: settings that do not fit the pipeline.
    """
    if (count := len(told.rows) * each) > _MOST_IMAGES:
        raise PeckerError(f"{told.source}: {count:,} images, at most {_MOST_IMAGES:,} are drawn")
    rows = [row for row in told.rows for _ in range(each)]
    if each > 1 and rows[0].save_as is not None:
        raise PeckerError(f"{told.source}: save_as names one image a row; leave out --per-prompt")
    folders, files = files_of_rows(rows, told.groups)
    if rows[0].seed is not None:  # then all have one; further images of a row take those after it
        seeds = [(row.seed or 0) + index % each for index, row in enumerate(rows)]
        sampler = replace(sampler, seeds=seeds)
    if sampler.guidance is None and sampler.steps > 1 and not pipeline.has_guidance:
        own = [GUIDANCE if row.guidance is None else row.guidance for row in rows]
        told_apart = rows[0].guidance is not None  # then all are
        sampler = replace(sampler, guidance=GUIDANCE, guidances=own if told_apart else None)
    elif sampler.steps == 1:
        sampler = replace(sampler, guidance=None)  # the one step of a generator takes none
    labels = torch.tensor([told.groups.index(row.group) for row in rows])
    about = {"class_names": list(told.groups), "prompts": told.digest, "per_prompt": each}
    prompts = [row.prompt for row in rows]
    return _plan(pipeline, path, sampler, prompts, folders, files, labels, about), rows


def _plan(
    model: ModelFolder | PipelineFolder,
    path: str | os.PathLike[str],
    sampler: Sampler,
    asked: Labels,
    folders: Mapping[str, Any],
    files: Sequence[str],
    labels: Tensor,
    about: Mapping[str, Any],
) -> SamplePlan:
    sampler.check(model, asked)  # what is wrong with a setting comes out now
    drawer = {
        "path": str(path),
        "kind": model.card.get("kind"),
        "iterations": model.card.get("iterations"),
        "forgotten": about.get("forgotten"),
        "weights": fingerprint(model.network),
    }
    return SamplePlan(
        facts={
            "count": len(asked),
            "folders": folders,
            **{key: value for key, value in about.items() if key != "forgotten"},
            "model": drawer,
            "sampler": sampler.settings(model, asked),
        },
        files=files,
        labels=labels,
        batch_size=sampler.size(model, asked),
        batches=lambda only, progress: sampler.batches(model, asked, only, progress),
        device=next(model.network.parameters()).device,
    )


def numbered_files(
    labels: Tensor, names: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """A sub-folder for each class that has images, and the file of each image in them.

    Returns:
        `SamplePlan.facts["folders"]` and `SamplePlan.files`; images are numbered within a folder.
        Folders sort by index, and are file names on any system: 03_T-shirt-top.
    """
    digits = max(2, len(str(len(names) - 1)))
    folders: dict[str, dict[str, Any]] = {}
    files = [""] * len(labels)
    for index in sorted(set(labels.tolist())):
        plain = re.sub(r"[^\w.-]+", "-", names[index]).strip("-.")[:60]
        folder = f"{index:0{digits}d}_{plain}" if plain else f"{index:0{digits}d}"
        places = (labels == index).nonzero()[:, 0].tolist()
        folders[folder] = {"index": index, "name": names[index], "count": len(places)}
        for number, place in enumerate(places):
            files[place] = f"{folder}/{number:06d}.png"
    return folders, files


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
