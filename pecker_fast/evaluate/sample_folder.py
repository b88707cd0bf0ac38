"""Samples of a model as a folder of PNG files that says what drew them.

    FOLDER/samples.json              model, sampler, seed, classes, versions, machine
    FOLDER/03_cat/000017.png         the eighteenth image of class 3

torchvision's `ImageFolder`, torch-fidelity and `load_image_files` read it. Every file is written
whole or not at all, and one that is there is not drawn again, so a run that was stopped goes on
from where it was and ends with the images of one that was not.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pecker_fast.datasets.image_files import SAMPLES_FILE
from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sample_plan import SamplePlan
from pecker_fast.files import write_text
from pecker_fast.machine import machine_facts, versions

__all__ = ["check_same_samples", "read_samples", "write_samples"]

# What may differ between the starts of one run: the images do not depend on it but for rounding,
# or it says the same in words.
_NOT_COMPARED = ("sampler.batch_size", "sampler.description", "model.path")

_SUB_FOLDER = re.compile(r"\d{2,}(_[\w.-]+)?")  # as `numbered_files` names them
_HALF_WRITTEN = re.compile(r"\.\d+\.\d+\.tmp\.png")


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
        PeckerError: the folder holds something else, or the samples of another run, or cannot be
            written to.
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
        prepared = ranks.first(lambda: _prepare(folder, plan, start, force, ranks))
        unfinished, missing = prepared["unfinished"], int(prepared["missing"])
        share = unfinished[ranks.rows(len(unfinished))]
        if not ranks.is_first or not share:
            progress = None
        if progress is not None and missing < len(plan.files):
            progress = f"{progress} the last {missing:,} of {len(plan.files):,}"
        started = time.perf_counter()
        for part, images in plan.batches(share, progress):
            _write_batch(folder, plan.files[part], images)
        ranks.wait()
        seconds = time.perf_counter() - started
        ranks.first(lambda: _finish(folder, plan.files, missing, seconds))
    return missing


def read_samples(folder: Path) -> dict[str, Any] | None:
    """What `samples.json` says; None where there is none.

    Raises:
        PeckerError: it cannot be read, or says something else.
    """
    file = folder / SAMPLES_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PeckerError(f"{file}: cannot be read ({error}); choose another folder") from error
    known = {"complete", "folders", "starts", "sampler"}
    if not isinstance(content, dict) or not known <= content.keys():
        raise PeckerError(f"{file}: says nothing of samples; choose another folder")
    return content


def check_same_samples(where: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Compare what samples that are there say of themselves with what is to be drawn.

    Raises:
        PeckerError: they differ in something that decides the images; it is named.
    """
    theirs, ours = _compared({key: before.get(key) for key in facts}), _compared(facts)
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if theirs.get(key) != ours.get(key):
            there, here = (_shown(values.get(key)) for values in (theirs, ours))
            raise PeckerError(
                f"{where}: holds samples of another run, where {key} is {there} and not {here}; "
                "choose another place, or add --force to replace them"
            )


@contextmanager
def _locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the folder, made if need be, on the first process; the lock goes with the process."""
    held: list[int] = []

    def lock() -> None:
        if folder.exists() and not folder.is_dir():
            raise PeckerError(f"{folder}: is a file; give the name of a folder")
        if not folder.parent.is_dir():
            raise PeckerError(f"{folder.parent}: no such folder; make it first")
        try:
            folder.mkdir(exist_ok=True)
            held.append(os.open(folder, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PeckerError(
                f"{folder}: another process writes samples there; wait for it or choose another "
                "folder"
            ) from None
        except OSError as error:
            if not held:  # else a file system without locks, which is no reason not to go on
                raise PeckerError(
                    f"{folder}: cannot be written to ({error.strerror}); choose another folder"
                ) from error

    try:
        ranks.first(lock)
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _prepare(
    folder: Path, plan: SamplePlan, start: dict[str, Any], force: bool, ranks: Ranks
) -> dict[str, Any]:
    """Check what is there and make the sub-folders: batches to draw, and how many images miss."""
    content = read_samples(folder)
    try:
        if content is None:
            if others := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")):
                raise PeckerError(
                    f"{folder}: holds {others[0]} and no {SAMPLES_FILE}; choose a new or empty "
                    "folder"
                )
        if force:
            before = content
            ranks.once(
                f"removed the samples of {folder.resolve()}", lambda: _remove(folder, before, plan)
            )
            content = read_samples(folder)
        if content is None:
            # Before all else: sub-folders without it would look like somebody else's.
            content = {"complete": False, **plan.facts, "starts": []}
            _write(folder, content)
        else:
            check_same_samples(folder, content, plan.facts)
        for leftover in folder.glob(f".{Path(SAMPLES_FILE).stem}.*.tmp.json"):
            leftover.unlink()
        there = _images_there(folder, plan)
        missing = [index for index, file in enumerate(plan.files) if file not in there]
        if missing:
            starts = [*content["starts"], start]
            _write(folder, {**content, "complete": False, "starts": starts})
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return {
        "unfinished": sorted({index // plan.batch_size for index in missing}),
        "missing": len(missing),
    }


def _remove(folder: Path, content: Mapping[str, Any] | None, plan: SamplePlan) -> None:
    """Delete samples and, at the end, the file that speaks of them."""
    if content is None:
        return
    for name in {*content["folders"], *plan.facts["folders"]}:
        # Some were read from a file: they must be of our making, and not ".." or worse.
        if _SUB_FOLDER.fullmatch(name) and (folder / name).is_dir():
            shutil.rmtree(folder / name)
    (folder / SAMPLES_FILE).unlink()


def _images_there(folder: Path, plan: SamplePlan) -> set[str]:
    """The files of the plan that are there, whole; makes the sub-folders and tidies them."""
    there, expected = set(), set(plan.files)
    for name in plan.facts["folders"]:
        place = folder / name
        place.mkdir(exist_ok=True)
        for file in os.scandir(place):
            if _HALF_WRITTEN.fullmatch(file.name):
                os.unlink(file)  # of a process that was killed
            elif file.name.startswith("."):
                continue  # what file managers leave
            elif f"{name}/{file.name}" not in expected:
                raise PeckerError(f"{file.path}: no image of this run; remove it")
            elif file.stat().st_size:  # a machine that lost power leaves empty files
                there.add(f"{name}/{file.name}")
    return there


def _finish(folder: Path, files: Sequence[str], drawn: int, seconds: float) -> None:
    """Say that all images are there, and how long those took that were missing."""
    if lost := next((file for file in files if not (folder / file).is_file()), None):
        raise PeckerError(
            f"{folder / lost}: is missing; processes on several machines need a folder that all of "
            "them see"
        )
    content = read_samples(folder)
    if content is None:
        raise PeckerError(f"{folder / SAMPLES_FILE}: was removed; start the same command again")
    if drawn:
        content["starts"][-1].update(images=drawn, seconds=round(seconds, 1))
    if not content["complete"]:
        try:
            _write(folder, {**content, "complete": True})
        except OSError as error:
            raise _cannot_write(folder / SAMPLES_FILE, error) from error


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    write_text(folder / SAMPLES_FILE, json.dumps(content, indent=2) + "\n")


def _compared(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal between two starts of one run, nested keys joined by dots."""
    return {key: value for key, value in _flat(facts).items() if key not in _NOT_COMPARED}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _write_batch(folder: Path, files: Sequence[str], images: Tensor) -> None:
    """Write those of the images (n, C, H, W) in [-1, 1] that are not there."""
    for file, pixels in zip(files, to_uint8(images), strict=True):
        target = folder / file
        if target.exists() and target.stat().st_size:
            continue
        # `files.replacing` would wait for the disk after every image.
        temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.png")
        try:
            picture = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
            Image.fromarray(picture.contiguous().numpy()).save(temporary)
            os.replace(temporary, target)
        except OSError as error:
            raise _cannot_write(target, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> PeckerError:
    remedy = "choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = (
            "the images that are there are whole: free some space, then start the same command "
            "again to go on"
        )
    return PeckerError(f"{path}: cannot be written to ({error.strerror or error}); {remedy}")
