"""The model that a path means: a model folder or pipeline, or what a run in it has made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["find_model", "find_pipeline", "load_original"]

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


def load_original(path: Path) -> ModelFolder:
    """The model that a class is to be erased from.

    Raises:
        PeckerError: no model, or one that draws in one step, which cannot teach.
    """
    from pecker_fast.models import ModelFolder

    folder = ModelFolder.load(find_model(path))
    if folder.kind == "generator":
        raise PeckerError(
            f"{path}: a one-step generator, which has no scores to learn from; give the model that "
            "it was distilled from, and this one as --generator of `erase` if it is the start"
        )
    return folder


def find_pipeline(path: Path) -> Path | None:
    """The text-to-image pipeline at `path`, or in the run directory `path`; None without one."""
    for place in (path, path / "pipeline"):
        if (place / "model_index.json").is_file():
            return place
    return None
