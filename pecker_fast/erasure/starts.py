"""Where generator and pseudo-score network of a run start, if not at the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import load_unet
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.finding import PIPELINE_NAME, PSEUDO_SCORE_NAME, find_model, holds_run

__all__ = ["Role", "StartNetwork", "load_original", "load_start"]

Role: TypeAlias = Literal["generator", "pseudo_score"]


@dataclass(frozen=True)
class StartNetwork:
    """A network that a run starts from."""

    network: nn.Module
    # Where it comes from, in plain types: `path` as it was given, `kind` (teacher, generator,
    # pseudo_score or the method of a baseline) and `fingerprint` of its weights; as far as its run
    # says, also `iterations` and `seconds` of training, `processes`, `device_name`, and `start`:
    # what that run itself started from.
    facts: Mapping[str, Any]


def load_original(model: Path | ModelFolder) -> ModelFolder:
    """The model that a class is to be erased from: a folder, a run that made one, or in memory.

    Raises:
        PeckerError: no model, or one that draws in one step, which cannot teach.
    """
    folder = model if isinstance(model, ModelFolder) else ModelFolder.load(find_model(model))
    if folder.kind == "generator":
        name = "model" if isinstance(model, ModelFolder) else str(model)
        raise PeckerError(
            f"{name}: a one-step generator, which has no scores to learn from; give the model that "
            "it was distilled from, and this one as --generator of `erase` if it is the start"
        )
    return folder


def load_start(
    path: Path, role: Role, like: nn.Module, *, of_prompts: bool = False
) -> StartNetwork:
    """A network to start from.

    Args:
        path: a model folder, or the directory of an earlier run: its averaged generator, or a first
            stage's pseudo-score network. Of a teacher's or a baseline's run, the model.
        role: which of the two.
        like: the teacher, whose architecture it must have.
        of_prompts: the teacher is a pipeline's; folders are those of pipelines or of a U-Net.

    Raises:
        PeckerError: neither of the two, a run that is not finished or has no such network, another
            architecture, or what was distilled from another model.
    """
    if role == "pseudo_score" and (path / PSEUDO_SCORE_NAME).is_dir():
        path = path / PSEUDO_SCORE_NAME
    network, figures = _read(path, of_prompts)
    kind = figures.get("method", figures.get("kind"))
    if role == "pseudo_score" and kind == "generator":
        raise PeckerError(
            f"{path}: holds a one-step generator and no pseudo-score network, which only `distill` "
            "and --config cifar10_stage1 keep; give a run of these, or the teacher"
        )
    digests = figures.get("frozen", {}).get("digests", {})
    # A run that started elsewhere is compared with its start, not with its teacher.
    origin = None if "start" in figures else digests.get("original")
    if origin is not None and origin != fingerprint(like):
        raise PeckerError(
            f"{path}: the {role} was made of another model (digest {origin[:9]}); make one of this "
            "model with `pecker-fast distill`"
        )
    ours = {name: tuple(p.shape) for name, p in network.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in like.named_parameters()}
    if different := sorted(ours.items() ^ theirs.items()):
        raise PeckerError(
            f"{path}: the {role} must have the architecture of the model; parameter "
            f"{different[0][0]!r} differs"
        )
    training = figures.get("training", {})
    machine = training.get("machine")
    facts = {
        "path": str(path),
        "kind": kind,
        "iterations": figures.get("iterations", training.get("iterations")),
        "seconds": training.get("seconds"),
        "processes": training.get("processes"),
        "device_name": machine.get("device_name") if isinstance(machine, dict) else None,
        "start": figures.get("start"),
        "fingerprint": fingerprint(network),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return StartNetwork(network.requires_grad_(True), known)


def _read(path: Path, of_prompts: bool) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network at a path or of the run there, and what its folder says of it."""
    if not of_prompts:
        model = ModelFolder.load(find_model(path))
        return model.network, model.card
    if (path / PIPELINE_NAME).is_dir():
        path = path / PIPELINE_NAME
    elif holds_run(path):
        raise PeckerError(
            f"{path}: this run has not made a pipeline yet; let it finish first: the same command "
            "goes on with it"
        )
    return load_unet(path)
