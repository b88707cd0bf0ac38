"""Where generator and pseudo-score network of a run start, if not at the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from pecker_fast.distill.network_set import restored_network, saved_network
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import CONFIG_NAME, WEIGHTS_NAME, read_config
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import load_unet
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.finding import (
    MODEL_NAME,
    PIPELINE_NAME,
    PSEUDO_SCORE_NAME,
    find_model,
    holds_run,
)
from pecker_fast.runs.reading import read_yaml

__all__ = ["StartNetwork", "load_original", "load_start"]

Role: TypeAlias = Literal["generator", "pseudo_score"]


@dataclass(frozen=True)
class StartNetwork:
    """A network that a run starts from.

    Attributes:
        network: itself.
        facts: where it comes from, in plain types: `path` as it was given, `kind` (teacher,
            generator, pseudo_score or the method of a baseline) and `fingerprint` of its weights;
            as far as its run says, also `iterations` and `seconds` of training, `processes`,
            `device_name`, and `start`: what that run itself started from.
    """

    network: nn.Module
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
    path: Path,
    role: Role,
    like: nn.Module,
    *,
    of_prompts: bool = False,
    ranks: Ranks | None = None,
) -> StartNetwork:
    """A network to start from.

    Args:
        path: a model folder, or the directory of an earlier run: its averaged generator, or its
            pseudo-score network, of a first stage as a folder, else of its last checkpoint. Of a
            run that has no such network, a teacher's or a baseline's, the model.
        role: which of the two.
        like: the teacher, whose architecture it must have.
        of_prompts: the teacher is a pipeline's; folders are those of pipelines or of a U-Net.
        ranks: the processes that share the run, all of which make this call. None: this one.

    Raises:
        PeckerError: neither of the two, a run that is not finished, another architecture, or what
            was distilled from another model.
    """
    if _is_classifier(path):
        raise PeckerError(
            f"{path}: a classifier; --{role.replace('_', '-')} takes a model folder, or a run of "
            "`erase` or `train-teacher`"
        )
    saved = None
    if role == "pseudo_score" and (path / PSEUDO_SCORE_NAME).is_dir():
        path = path / PSEUDO_SCORE_NAME
    elif role == "pseudo_score" and holds_run(path):
        # One process reads, since a run directory is locked meanwhile.
        saved = (ranks or Ranks()).first(lambda: _saved_pseudo_score(path, of_prompts))
    if saved is None:
        network, figures = _read(path, of_prompts)
        _check_origin(path, role, figures, like)
        facts = {"kind": figures.get("method", figures.get("kind")), **_training(figures)}
    else:
        try:
            network = restored_network(saved["network"], like)
        except PeckerError as error:
            raise PeckerError(f"{path}: its pseudo-score network {error}") from None
        facts = {"kind": role, **saved["training"]}
    ours = {name: tuple(p.shape) for name, p in network.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in like.named_parameters()}
    if different := sorted(ours.items() ^ theirs.items()):
        raise PeckerError(
            f"{path}: the {role} must have the architecture of the model; parameter "
            f"{different[0][0]!r} differs"
        )
    facts = {"path": str(path), **facts, "fingerprint": fingerprint(network)}
    return StartNetwork(network.requires_grad_(True), facts)


def _read(path: Path, of_prompts: bool) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network at a path or of the run there, and what its folder says of it."""
    if not of_prompts:
        model = ModelFolder.load(find_model(path))
        return model.network, {"kind": model.kind, **model.figures}
    if (path / PIPELINE_NAME).is_dir():
        path = path / PIPELINE_NAME
    elif holds_run(path):
        raise PeckerError(
            f"{path}: this run has not made a pipeline yet; let it finish first: the same command "
            "goes on with it"
        )
    return load_unet(path)


def _check_origin(path: Path, role: Role, figures: Mapping[str, Any], teacher: nn.Module) -> None:
    """Refuse what says that it was distilled from another model than this teacher."""
    digests = figures.get("frozen", {}).get("digests", {})
    # A run that started elsewhere is compared with its start, not with its teacher.
    origin = None if "start" in figures else digests.get("original")
    if origin is not None and origin != fingerprint(teacher):
        raise PeckerError(
            f"{path}: the {role} was made of another model (digest {origin[:9]}); make one of this "
            "model with `pecker-fast distill`"
        )


def _is_classifier(path: Path) -> bool:
    """The directory of a classifier's run, finished or not, or a classifier's folder."""
    if (path / CONFIG_NAME).is_file() and (path / WEIGHTS_NAME).is_file():
        return "num_classes" in read_config(path)
    if not (path / "config.yaml").is_file():
        return False
    try:
        config = read_yaml(path / "config.yaml")
    except PeckerError:
        return False  # what else is wrong with the run is said where its model is read
    return isinstance(config, dict) and "arch" in config


def _training(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's figures say of the training that made it; only what is there."""
    training = figures.get("training", {})
    machine = training.get("machine")
    found = {
        "iterations": figures.get("iterations", training.get("iterations")),
        "seconds": training.get("seconds"),
        "processes": training.get("processes"),
        "device_name": machine.get("device_name") if isinstance(machine, dict) else None,
        "start": figures.get("start"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _saved_pseudo_score(path: Path, of_prompts: bool) -> dict[str, Any] | None:
    """The pseudo-score network of a run's last checkpoint and its training; None: it has none.

    Raises:
        PeckerError: there is no checkpoint, or it cannot be read.
    """
    with RunDirectory(path) as directory:
        saved = directory.load()
    if saved is None:
        raise PeckerError(
            f"{path}: this run has no checkpoint, so no pseudo-score network; let it save one, or "
            "give a model folder"
        )
    network = saved_network(saved, "pseudo_score")
    if network is None:
        return None
    training = {"iterations": saved["iteration"], "seconds": round(saved["seconds"], 2)}
    if (path / (PIPELINE_NAME if of_prompts else MODEL_NAME)).is_dir():
        made = _training(_read(path, of_prompts)[1])
        # Of one state of the run: the model's figures say more, and count its seconds to the end.
        if made.get("iterations") == saved["iteration"]:
            training = made
    return {"network": network, "training": training}
