"""Where generator and pseudo-score network of a run start, if not at the teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pecker_fast.commands.run_files import MODEL_NAME
from pecker_fast.distill.checkpoint import RunDirectory
from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder

__all__ = ["load_start"]


def load_start(
    path: Path, role: Literal["generator", "pseudo_score"], like: nn.Module
) -> nn.Module:
    """A network to start from.

    Args:
        path: a model folder, or the directory of an earlier run: its averaged generator, or the
            pseudo-score network of its last checkpoint.
        role: which of the two.
        like: the teacher, whose architecture it must have.

    Raises:
        PeckerError: neither of the two, a run that is not finished, or another architecture.
    """
    if not (path / "run.lock").is_file():
        network: nn.Module = ModelFolder.load(path).unet
    elif role == "generator":
        if not (path / MODEL_NAME).is_dir():
            raise PeckerError(f"{path}: this run has not made a model yet; let it finish first")
        network = ModelFolder.load(path / MODEL_NAME).unet
    else:
        network = _pseudo_score(path, like)
    ours = {name: tuple(p.shape) for name, p in network.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in like.named_parameters()}
    if different := sorted(ours.items() ^ theirs.items()):
        raise PeckerError(
            f"{path}: the {role} must have the architecture of the model; parameter "
            f"{different[0][0]!r} differs"
        )
    return network.requires_grad_(True)


@torch.no_grad()
def _pseudo_score(path: Path, like: nn.Module) -> nn.Module:
    """The pseudo-score network of a run's last checkpoint."""
    with RunDirectory(path) as directory:
        saved = directory.load()
    if saved is None:
        raise PeckerError(f"{path}: this run has no checkpoint, so no pseudo-score network")
    values: dict[str, Tensor] = saved["networks"]["pseudo_score"]
    network = copy.deepcopy(like)
    shapes: dict[str, Any] = {name: value.shape for name, value in network.state_dict().items()}
    if {name: value.shape for name, value in values.items()} == shapes:
        network.load_state_dict(values)
        return network
    # A run whose networks shared one set of weights saved the salient values only.
    for name, value in values.items():
        try:
            param = network.get_parameter(name)
            param.view(-1)[saved["ever_salient"]["indices"][name].long()] = value.to(param)
        except (AttributeError, KeyError, RuntimeError, IndexError):
            raise PeckerError(
                f"{path}: its pseudo-score network is not of the model's architecture ({name!r})"
            ) from None
    return network
