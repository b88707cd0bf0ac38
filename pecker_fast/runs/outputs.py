"""The directory of a run: who may write to it, what lies in it, what --force removes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.masks.verify import FROZEN_NAME
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.finding import (
    LOCK_NAME,
    MODEL_NAME,
    PIPELINE_NAME,
    PSEUDO_SCORE_NAME,
    check_run_directory,
)

__all__ = [
    "ATTACK_NAME",
    "CURVE_NAME",
    "PATCH_NAME",
    "PICTURE_NAMES",
    "REPORT_NAMES",
    "START_NAME",
    "Clock",
    "run_directory",
]

ATTACK_NAME = "attack.json"
CURVE_NAME = "curve.json"
PATCH_NAME = "patch.safetensors"
REPORT_NAMES = ("report.json", "report.html")
PICTURE_NAMES = ("before_after.png", "accuracy.png", "density.png")
START_NAME = "start.json"
"""How the run began, which later starts of it do not see. `start`: the networks that it was given;
`mask_seconds`: what finding its mask took."""

_FILES = (
    *REPORT_NAMES, *PICTURE_NAMES, ATTACK_NAME, CURVE_NAME, FROZEN_NAME, PATCH_NAME, START_NAME,
    "config.yaml", "mask.safetensors", "progress.png", "previews.safetensors",
)  # fmt: skip
_FOLDERS = (MODEL_NAME, PIPELINE_NAME, PSEUDO_SCORE_NAME, "tensorboard")


@contextmanager
def run_directory(
    out: Path, force: bool, ranks: Ranks, also: Sequence[str] = ()
) -> Iterator[RunDirectory | None]:
    """Lock the directory of a run: a new one, an empty one, or one that holds a run.

    If the block raises before anything is written there, the lock goes, and a new directory too.

    Args:
        out: The directory.
        force: Remove the run that it holds. Only files that a run writes are removed, and once:
            what this launch itself has saved is taken up after a restart by torchrun.
        ranks: The processes of the run, all of which make this call.
        also: Further files that a run of this kind writes.

    Yields:
        The directory on the first process; None on the others, which write nothing.

    Raises:
        PeckerError: It is a file, in use, not writable, or holds other things.
    """
    opened: list[RunDirectory] = []
    is_new = not out.exists()
    ranks.first(lambda: opened.append(_open(out, force, ranks, also)))
    try:
        yield opened[0] if opened else None
    except BaseException:
        if opened and [file.name for file in out.iterdir()] == [LOCK_NAME]:
            (out / LOCK_NAME).unlink()
            if is_new:
                out.rmdir()
        raise
    finally:
        for directory in opened:
            directory.close()


def _open(out: Path, force: bool, ranks: Ranks, also: Sequence[str]) -> RunDirectory:
    check_run_directory(out)

    for name in _FOLDERS:
        if (out / name).is_symlink():
            raise PeckerError(f"{out / name}: is a link, which is not written through; remove it")

    def remove() -> None:
        for file in [*map(out.joinpath, (*_FILES, *also)), *out.glob("checkpoint-*.pt")]:
            file.unlink(missing_ok=True)
        for folder in _FOLDERS:
            shutil.rmtree(out / folder, ignore_errors=True)

    directory = RunDirectory(out)
    if force:
        ranks.once(f"removed the run of {out.resolve()}", remove)
    return directory


class Clock:
    """Seconds per stage, and in all since the start."""

    def __init__(self, started: float | None = None) -> None:
        """Start now, or at an earlier `time.monotonic()`: what went before is the stage `load`."""
        now = time.monotonic()
        self.started = now if started is None else started
        self.stages: dict[str, float] = {} if started is None else {"load": now - started}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as this stage."""
        begun = time.monotonic()
        yield
        self.stages[name] = time.monotonic() - begun

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started
