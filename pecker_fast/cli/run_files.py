"""The directory of a run: who may write to it, what lies in it, what --force removes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.files import replacing_folder
from pecker_fast.models import ModelFolder
from pecker_fast.runs.checkpoint import RunDirectory

__all__ = [
    "CURVE_NAME",
    "FROZEN_NAME",
    "MODEL_NAME",
    "PICTURE_NAMES",
    "REPORT_NAMES",
    "Clock",
    "open_run",
    "run_directory",
    "save_folder",
]

FROZEN_NAME = "frozen.json"
MODEL_NAME = "model"
CURVE_NAME = "curve.json"
REPORT_NAMES = ("report.json", "report.html")
PICTURE_NAMES = ("before_after.png", "accuracy.png", "density.png")
_OUTPUTS = (
    *REPORT_NAMES,
    *PICTURE_NAMES,
    CURVE_NAME,
    FROZEN_NAME,
    "config.yaml",
    "mask.safetensors",
    "start.json",
)


def open_run(out: Path, force: bool, ranks: Ranks) -> RunDirectory:
    """Lock the directory of a run: a new one, an empty one, or one that holds a run.

    Args:
        out: the directory.
        force: remove the run that it holds. Only files that a run writes are removed, and once:
            what this launch itself has saved is taken up after a restart by torchrun.
        ranks: the processes of the run, of which this is the first.

    Raises:
        PeckerError: it is a file, in use, not writable, or holds other things.
    """
    if out.exists() and not out.is_dir():
        raise PeckerError(f"{out}: is a file; give --out the name of a directory")
    if out.is_dir() and any(out.iterdir()) and not (out / "run.lock").exists():
        raise PeckerError(
            f"{out}: is not empty and holds no run of pecker-fast; choose another --out"
        )
    directory = RunDirectory(out)
    if force:
        ranks.once(f"removed the run of {out.resolve()}", lambda: _remove_run(out))
    return directory


def _remove_run(out: Path) -> None:
    for path in [*map(out.joinpath, _OUTPUTS), *out.glob("checkpoint-*.pt")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / MODEL_NAME, ignore_errors=True)
    shutil.rmtree(out / "tensorboard", ignore_errors=True)


@contextmanager
def run_directory(out: Path, force: bool, ranks: Ranks) -> Iterator[RunDirectory | None]:
    """As `open_run` on the first process; None on the others, which write nothing."""
    opened: list[RunDirectory] = []
    ranks.first(lambda: opened.append(open_run(out, force, ranks)))
    try:
        yield opened[0] if opened else None
    finally:
        for directory in opened:
            directory.close()


def save_folder(model: ModelFolder, path: Path) -> None:
    """Write a model folder, whole or not at all, in the place of one that may be there."""
    with replacing_folder(path) as partial:
        model.save(partial)


class Clock:
    """Seconds per stage, and in all since the start."""

    def __init__(self, started: float | None) -> None:
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
