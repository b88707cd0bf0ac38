"""What a path means: a model or a pipeline, or the one that the run in this directory has made.

Nothing heavy is imported here: the command line asks before torch is loaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json

__all__ = [
    "LOCK_NAME",
    "MODEL_NAME",
    "PIPELINE_NAME",
    "PSEUDO_SCORE_NAME",
    "check_run_directory",
    "find_model",
    "find_pipeline",
    "holds_run",
    "is_hub_id",
    "is_repository",
]

# A network and its schedule: of diffusers, and what a one-step generator's folder says.
_CLASS_PIPELINES = (
    "ConsistencyModelPipeline", "DDIMPipeline", "DDPMPipeline", "DiTPipeline", "OneStepPipeline"
)  # fmt: skip
_NETWORKS = ("unet", "transformer")

MODEL_NAME = "model"
PIPELINE_NAME = "pipeline"
PSEUDO_SCORE_NAME = "pseudo_score"
LOCK_NAME = "run.lock"


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".pkl", ".bin", ".json", ".yaml")


def is_hub_id(text: str) -> bool:
    """Whether this is an id of the hub, `owner/name`, and no path: nothing is there.

    What begins with a dot or a slash, has another number of parts or ends as a file does, is a path
    even where nothing is there.
    """
    return is_repository(text) and not text.endswith(_FILES) and not os.path.lexists(text)


def is_repository(text: str) -> bool:
    """Whether this may be the id of a repository on the hub, `owner/name`."""
    return _HUB_ID.fullmatch(text) is not None


def holds_run(path: Path) -> bool:
    """Whether `path` is the directory of a run. A copy of one may lack the lock."""
    if (path / LOCK_NAME).is_file():
        return True
    saved = path.glob("checkpoint-" + "[0-9]" * 8 + ".pt")
    return (path / "config.yaml").is_file() and any(saved)


def check_run_directory(out: Path) -> None:
    """Refuse what cannot be the directory of a run.

    Raises:
        PeckerError: It is a file, or holds other things.
    """
    if out.exists() and not out.is_dir():
        raise PeckerError(f"{out}: is a file; give --out the name of a directory")
    if out.is_dir() and any(out.iterdir()) and not holds_run(out):
        raise PeckerError(
            f"{out}: is not empty and holds no run of pecker-fast; choose another --out"
        )


def find_model(path: Path) -> Path:
    """The model folder at `path`, or the one in the run directory `path`.

    Raises:
        PeckerError: A run that has made no model yet. A path that is neither is returned as it is.
    """
    if any((path / part).is_dir() for part in _NETWORKS) or (path / "config.json").is_file():
        return path
    if (path / MODEL_NAME).is_dir():
        return path / MODEL_NAME
    if holds_run(path):
        raise PeckerError(
            f"{path}: this run has not made a model yet; let it finish first: the same command "
            "goes on with it"
        )
    return path


def find_pipeline(path: Path) -> Path | None:
    """The text-to-image pipeline at `path`, or in the run directory `path`; None without one.

    Raises:
        PeckerError: its model_index.json cannot be read.
    """
    for place in (path, path / PIPELINE_NAME):
        if (place / "model_index.json").is_file():
            index = read_json(place / "model_index.json")
            is_of_classes = isinstance(index, dict) and index.get("_class_name") in _CLASS_PIPELINES
            return None if is_of_classes else place
    return None
