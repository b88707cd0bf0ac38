"""Samples of a model as a folder of PNG files that says what drew them.

    FOLDER/samples.json              model, sampler, seed, classes, versions, machine
    FOLDER/03_cat/000017.png         the eighteenth image of class 3

torchvision's `ImageFolder`, torch-fidelity and `load_image_files` read it. Every file is written
whole or not at all, and one that is there is not drawn again, so a run that was stopped goes on
from where it was and ends with the images of one that was not.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pecker_fast.datasets.image_files import SAMPLES_FILE, load_image_files
from pecker_fast.datasets.pixels import to_pil, to_uint8
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sample_plan import SamplePlan
from pecker_fast.files import read_json, write_text
from pecker_fast.machine import machine_facts, versions

__all__ = ["read_back", "write_samples"]

# What may differ between the starts of one run: the images do not depend on it but for rounding,
# or it says the same in words.
_NOT_COMPARED = ("sampler.batch_size", "sampler.description", "model.path")

_SUB_FOLDER = re.compile(r"\d{2,}(_[\w.-]+)?")  # as `numbered_files` names them


def write_samples(
    folder: Path,
    plan: SamplePlan,
    ranks: Ranks | None = None,
    progress: str | None = None,
    force: bool = False,
) -> int:
    """Draw images into a folder, those that are there already left out.

    Args:
        folder: where to; made if need be. With several processes a place that all of them see.
        plan: what is to be drawn, the same on all processes.
        ranks: the processes that share the work, batch by batch. None: this one does it all.
        progress: title of a progress bar on stderr, of the first process's share; None for no bar.
        force: delete samples that the folder holds, of whatever run but this launch itself, which
            torchrun may have restarted.

    Returns:
        How many images were missing before.

    Raises:
        PeckerError: the folder holds something else, or the samples of another run.
        OSError: it cannot be written to; what is there is whole.
    """
    ranks = ranks or Ranks()
    ranks.check_same(json.dumps(_compared(plan.facts)), "another model or other settings")
    start = {
        "images": None,  # known when it ends; a start that was killed leaves it so
        "seconds": None,
        "processes": ranks.size,
        "batch_size": plan.batch_size,
        "machine": machine_facts(plan.device),
        "versions": versions(),
    }
    with _locked(folder, ranks):
        missing = ranks.first(lambda: _prepare(folder, plan, start, force, ranks))
        unfinished = sorted({index // plan.batch_size for index in missing})
        share = unfinished[ranks.rows(len(unfinished))]
        if not ranks.is_first or not share:
            progress = None
        if progress is not None and len(missing) < len(plan.files):
            progress = f"{progress} the last {len(missing):,} of {len(plan.files):,}"
        started = time.perf_counter()
        for part, images in plan.batches(share, progress):
            for file, pixels in zip(plan.files[part], to_uint8(images), strict=True):
                _write_image(folder / file, pixels)
        ranks.wait()
        seconds = round(time.perf_counter() - started, 1)
        ranks.first(lambda: _finish(folder, plan, {"images": len(missing), "seconds": seconds}))
    return len(missing)


def read_back(folder: Path, labels: Tensor, progress: str | None) -> Tensor:
    """The images of a folder in the order in which they were planned, (N, C, H, W) uint8."""
    in_files = load_image_files(folder, progress).images  # class by class
    images = torch.empty_like(in_files)
    images[labels.argsort(stable=True)] = in_files
    return images


def _prepare(
    folder: Path, plan: SamplePlan, start: dict[str, Any], force: bool, ranks: Ranks
) -> list[int]:
    """Check what is there, make the sub-folders, note the start; the images that are missing."""
    if force:
        removed = f"removed the samples of {folder.resolve()}"
        ranks.once(removed, lambda: _remove(folder, plan.facts))
    content = _read(folder)
    if content is None:
        if not force:
            _check_empty(folder)
        # Before all else: sub-folders without it would look like somebody else's.
        content = {"complete": False, **plan.facts, "starts": []}
        _write(folder, content)
    else:
        _check_same(folder, content, plan.facts)
    for name in plan.facts["folders"]:
        (folder / name).mkdir(exist_ok=True)
    missing = _missing(folder, plan)
    if missing:
        _write(folder, {**content, "complete": False, "starts": [*content["starts"], start]})
    return missing


def _missing(folder: Path, plan: SamplePlan) -> list[int]:
    there = {
        f"{name}/{file.name}": file.stat().st_size
        for name in plan.facts["folders"]
        for file in os.scandir(folder / name)
        if not file.name.startswith(".")
    }
    if surplus := there.keys() - set(plan.files):
        raise PeckerError(f"{folder / min(surplus)}: no image of this run; remove it")
    # A machine that lost power leaves empty files.
    return [index for index, file in enumerate(plan.files) if not there.get(file)]


def _remove(folder: Path, facts: Mapping[str, Any]) -> None:
    """Delete samples, and at the end the file that speaks of them."""
    content = _read(folder)
    if content is None:
        _check_empty(folder)
        return
    for name in {*content["folders"], *facts["folders"]}:
        # Some were read from a file: they must be of our making, and not ".." or worse.
        if _SUB_FOLDER.fullmatch(name) and (folder / name).is_dir():
            shutil.rmtree(folder / name)
    (folder / SAMPLES_FILE).unlink()


def _check_empty(folder: Path) -> None:
    if others := {path.name for path in folder.iterdir() if not path.name.startswith(".")}:
        raise PeckerError(
            f"{folder}: holds {min(others)} and no {SAMPLES_FILE}; choose a new or empty folder"
        )


def _finish(folder: Path, plan: SamplePlan, ended: Mapping[str, Any]) -> None:
    """Say that all images are there, and how long those took that were missing."""
    if lost := _missing(folder, plan):
        raise PeckerError(
            f"{folder / plan.files[lost[0]]}: is missing; processes on several machines need a "
            "folder that all of them see"
        )
    content = _read(folder)
    if content is None:
        raise PeckerError(f"{folder / SAMPLES_FILE}: was removed; start the same command again")
    if ended["images"]:
        content["starts"][-1].update(ended)
    if not content["complete"]:
        _write(folder, {**content, "complete": True})


def _write_image(target: Path, pixels: Tensor) -> None:
    if target.exists() and target.stat().st_size:
        return
    # `files.replacing` would wait for the disk after every image. A process that is killed leaves
    # the file, and the next one removes it.
    temporary = target.with_name(f".{target.name}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.touch(exist_ok=False)  # a file of ours, not the link of somebody
        to_pil(pixels).save(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the folder, made if need be, on the first process; the lock goes with the process."""
    descriptor = ranks.first(lambda: _lock(folder))
    try:
        yield
    finally:
        if ranks.is_first:
            os.close(descriptor)


def _lock(folder: Path) -> int:
    if folder.exists() and not folder.is_dir():
        raise PeckerError(f"{folder}: is a file; give the name of a folder")
    if not folder.parent.is_dir():
        raise PeckerError(f"{folder.parent}: no such folder; make it first")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise PeckerError(
            f"{folder}: another process writes samples there; wait for it or choose another folder"
        ) from None
    except OSError:
        pass  # a file system without locks is no reason not to go on
    return descriptor


def _read(folder: Path) -> dict[str, Any] | None:
    """What samples.json says; None where there is none."""
    file = folder / SAMPLES_FILE
    if not file.exists():
        return None
    content = read_json(file)
    kinds = {"complete": bool, "folders": dict, "starts": list, "sampler": dict}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kind) for key, kind in kinds.items()
    ):
        raise PeckerError(f"{file}: says nothing of samples; choose another folder")
    return content


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    write_text(folder / SAMPLES_FILE, json.dumps(content, indent=2) + "\n")


def _check_same(where: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Compare what samples that are there say of themselves with what is to be drawn."""
    theirs, ours = _compared({key: before.get(key) for key in facts}), _compared(facts)
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key):
            there, here = (json.dumps(values.get(key))[:40] for values in (theirs, ours))
            raise PeckerError(
                f"{where}: holds samples of another run, where {key} is {there} and not {here}; "
                "choose another place, or add --force to replace them"
            )


def _compared(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What must be equal between two starts of one run, nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _compared(value, f"{prefix}{key}.")
        elif prefix + key not in _NOT_COMPARED:
            flat[prefix + key] = value
    return flat
