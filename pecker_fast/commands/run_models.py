"""The model that a path means: a model folder or pipeline, or what a run in it has made."""

from __future__ import annotations

from pathlib import Path

from pecker_fast.errors import PeckerError

__all__ = ["find_model", "find_pipeline"]

_LOCK = "run.lock"


def find_model(path: Path) -> Path:
    """The model folder at `path`, or the one in the run directory `path`.

    Raises:
        PeckerError: a run that has made no model yet. A path that is neither is returned as it is.
    """
    if (path / "unet").is_dir() or (path / "config.json").is_file():
        return path
    if (path / "model").is_dir():
        return path / "model"
    if (path / _LOCK).is_file():
        raise PeckerError(
            f"{path}: this run has not made a model yet; let it finish first: the same command "
            "goes on with it"
        )
    return path


def find_pipeline(path: Path) -> Path | None:
    """The text-to-image pipeline at `path`, or in the run directory `path`; None without one."""
    for place in (path, path / "pipeline"):
        if (place / "model_index.json").is_file():
            return place
    return None
