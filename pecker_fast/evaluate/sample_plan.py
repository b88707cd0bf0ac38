"""What is to be drawn, before it is: which images, in which files, and all that decides them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.runs.digest import fingerprint

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["SamplePlan", "class_plan", "numbered_files"]


@dataclass(frozen=True)
class SamplePlan:
    """Images that are to be drawn and written."""

    # What decides the images, as plain types. `folders` has the sub-folders, and of each the
    # `index` of its class, its `name`, and the `count` of its images.
    facts: Mapping[str, Any]
    files: Sequence[str]  # path of each image within the folder of the samples
    labels: Tensor  # (N,) int64, the class of each image
    batch_size: int  # batch k holds the images from k * batch_size on
    # (numbers of the batches to draw, title of a progress bar or None) -> which images, and (n, C,
    # H, W) in [-1, 1] on the CPU, batch by batch.
    batches: Callable[[Collection[int], str | None], Iterator[tuple[slice, Tensor]]]
    device: torch.device  # where they are drawn


def class_plan(
    model: ModelFolder, path: str | os.PathLike[str], sampler: Sampler, labels: Tensor
) -> SamplePlan:
    """Images of a model's classes, one for each of the labels (N,) int64.

    Raises:
        PeckerError: the model has no such class, or its images can be no PNGs.
    """
    if model.image_shape[0] not in (1, 3):
        raise PeckerError(f"PNG: images need 1 or 3 channels, got {model.image_shape[0]}")
    sampler.check(model, labels)
    folders, files = numbered_files(labels, model.class_names)
    facts = {
        "count": len(labels),
        "folders": folders,
        "class_names": list(model.class_names),
        "image_shape": list(model.image_shape),
        "model": {
            "path": str(path),
            "kind": model.kind,
            "iterations": model.figures.get("iterations"),
            "forgotten": model.figures.get("forget"),
            "weights": fingerprint(model.network),
        },
        "sampler": sampler.settings(model),
    }
    return SamplePlan(
        facts=facts,
        files=files,
        labels=labels,
        batch_size=sampler.batch_size,
        batches=lambda only, progress: sampler.batches(model, labels, only, progress),
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
