"""One run's directory: locked while in use, checkpoints written whole or not at all.

    config.yaml                what the run was started with
    mask.safetensors           the mask in use
    start.json                 what the networks started from, and how long the mask took to find
    frozen.json                at the end: how many frozen parameters changed, bit by bit
    checkpoint-00000500.pt     the newest checkpoint; the one before it is kept as well
    run.lock                   held by the process that works here

A checkpoint is written beside its final name, flushed to the disk and renamed. A process that is
killed at any moment leaves the checkpoints that were there, and at most a temporary file that the
next run removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError, printable
from pecker_fast.files import remove_leftovers, replacing, write_text
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FROZEN_NAME
from pecker_fast.runs.digest import digest_of
from pecker_fast.runs.finding import (
    LOCK_NAME,
    MODEL_NAME,
    PIPELINE_NAME,
    PSEUDO_SCORE_NAME,
    check_run_directory,
)

__all__ = [
    "ATTACK_NAME", "CURVE_NAME", "PATCH_NAME", "PICTURE_NAMES", "REPORT_NAMES", "START_NAME",
    "Clock", "RunDirectory", "mask_state", "run_directory",
]  # fmt: skip

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


_FORMAT = 3
_KEEP = 2
_LONGEST_OWNER = 20
"""Characters of the number of a process."""
_NAME = re.compile(r"checkpoint-(\d+)\.pt")


class RunDirectory:
    """A directory that one process at a time may write a run to.

    Use it as a context manager, or call `close`. The lock goes with the process, however it ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the directory if need be, lock it, and clear what a killed run left half-written.

        Raises:
            PeckerError: Another process works there, or it cannot be written to.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _open_lock(self.path / LOCK_NAME)
        except OSError as error:
            raise PeckerError(
                f"cannot write to {self.path}: {error.strerror or error}; choose another output "
                "directory"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = self._lock.read(_LONGEST_OWNER).strip() or "unknown"
            self._lock.close()
            raise PeckerError(
                f"{self.path} is in use by process {owner}; wait for it or choose another directory"
            ) from None
        except OSError as error:
            self._lock.close()
            raise PeckerError(
                f"cannot lock {self.path}: {error.strerror}; choose a directory on a local disk"
            ) from None
        with self._reporting("the lock"):
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()))
            self._lock.flush()
            remove_leftovers(self.path)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def iterations(self) -> list[int]:
        """The iterations of the checkpoints that are here, oldest first."""
        matches = (_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def standing(self) -> str:
        """What a run that stops now leaves, for the end of an error message."""
        try:
            done = self.iterations()
        except OSError:
            return "what was saved before is untouched"
        return f"the checkpoint of iteration {done[-1]} is intact" if done else "nothing was saved"

    def save(self, iteration: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of an iteration and drop all but the one before it.

        Raises:
            PeckerError: The disk is full or cannot be written; the checkpoints are as they were.
        """
        content = {"format": _FORMAT, "iteration": iteration, **state}
        content["digest"] = digest_of(content)
        with self._reporting(f"the checkpoint of iteration {iteration}"):
            with replacing(self._file(iteration)) as temporary, open(temporary, "wb") as file:
                torch.save(content, file)
                file.flush()
            self._sync()
            done = self.iterations()
            kept = [other for other in done if other <= iteration][-_KEEP:]
            for other in done:
                # One beyond this iteration was damaged, or the run would have gone on from it.
                if other not in kept:
                    self._file(other).unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, on the CPU; None if there is none.

        One that does not have the bits that were saved is passed over with a warning.

        Raises:
            PeckerError: A checkpoint may not be read or is of another format, or all are damaged.
        """
        iterations = self.iterations()
        for iteration in reversed(iterations):
            file = self._file(iteration)
            try:
                if not file.is_file():  # a pipe would wait for a writer
                    raise ValueError("no regular file")
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                found, digest = state["format"], state.pop("digest", None)
                if type(found) is not int:
                    raise ValueError("it does not say which format it has")
                intact = digest == digest_of(state)
            except OSError as error:
                raise PeckerError(f"cannot read {file}: {error.strerror}") from None
            except MemoryError:
                raise
            except Exception as error:  # what a damaged zip or pickle raises is not specified
                reason = str(error).split("\n", 1)[0]
            else:
                if found != _FORMAT and (intact or digest is None):
                    raise PeckerError(
                        f"{file} has format {found}, this version reads {_FORMAT}; resume it with "
                        "the version that wrote it or choose another directory"
                    )
                if intact:
                    return state
                reason = "its content does not match its digest"
            warnings.warn(printable(f"{file} is damaged ({reason}); trying older"), stacklevel=2)
        if iterations:
            raise PeckerError(
                f"every checkpoint in {self.path} is damaged; delete them to start anew"
            )
        return None

    def write_config(self, text: str) -> None:
        """Write config.yaml.

        Raises:
            PeckerError: The disk is full or cannot be written.
        """
        with self._reporting("config.yaml"):
            write_text(self.path / "config.yaml", text)

    def write_mask(self, mask: SaliencyMask, model: str) -> None:
        """Write mask.safetensors, with the digest of the model that it is of.

        Raises:
            PeckerError: The disk is full or cannot be written.
        """
        with self._reporting("mask.safetensors"):
            mask.save(self.path / "mask.safetensors", model=model)

    def _file(self, iteration: int) -> Path:
        return self.path / f"checkpoint-{iteration:08d}.pt"

    def _sync(self) -> None:
        """Make the renames themselves survive a power failure."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        """Turn an error of the file system into one line that says what is still there."""
        try:
            yield
        except (OSError, RuntimeError) as raised:
            # On a full disk torch.save's zip writer raises a RuntimeError over the OSError.
            error = raised if isinstance(raised, OSError) else raised.__context__
            if not isinstance(error, OSError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "free some space" if full else "make it writable"
            raise PeckerError(
                f"cannot write {what} to {self.path}: {error.strerror}; {self.standing()}; "
                f"{remedy} and start the same command again to resume"
            ) from error


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


def _open_lock(path: Path) -> TextIO:
    """The lock's file, made if need be, as it is; never through a link, and no other file.

    Raises:
        PeckerError: It is a link, or holds something else than the number of a process: the
            directory may come from somebody else.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise PeckerError(f"{path}: is a link, which is not written through; remove it") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PeckerError(f"{path}: is no lock of a run; remove it, or choose another directory")
    lock = open(descriptor, "r+", encoding="ascii", errors="replace")
    owner = lock.read(_LONGEST_OWNER + 1)
    if owner and not (owner.strip().isdigit() and len(owner) <= _LONGEST_OWNER):
        lock.close()
        raise PeckerError(f"{path}: is no lock of a run; remove it, or choose another directory")
    lock.seek(0)
    return lock


def mask_state(mask: SaliencyMask) -> dict[str, Any]:
    """A mask as the arguments of `SaliencyMask`, in types that a checkpoint may hold."""
    return {
        "indices": dict(mask.indices),
        "shapes": {name: list(shape) for name, shape in mask.shapes.items()},
        "granularity": mask.granularity,
        "block_size": mask.block_size,
    }


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
