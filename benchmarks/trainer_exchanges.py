"""What communication.py counts of the trainer: whole iterations, in which both networks learn."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn
from wire_meter import Meter, Outcome

from pecker_fast.distill import (
    ClassConditions,
    NoiseSchedule,
    Objective,
    PeckerTrainer,
    load_config,
)
from pecker_fast.distributed import GradientReducer

__all__ = ["ITERATIONS", "TrainerRun", "iteration"]

_CLASSES = 10


@dataclass(frozen=True)
class TrainerRun:
    """An iteration of the trainer: both networks learn."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


_DENSITY = 0.1  # of the trainer's mask
_BOTH = {"mask.apply": "both"}
ITERATIONS = (
    TrainerRun("no mask, both networks", {"mask.kind": "full"}),
    TrainerRun("mask on the generator, dense pseudo-score", {"mask.apply": "generator"}),
    TrainerRun("mask on both", _BOTH),
    TrainerRun("mask on both, released gradients", {**_BOTH, "optimizer.release_grads": True}),
)


def iteration(run: TrainerRun, network: nn.Module, image_size: int, meter: Meter) -> Outcome:
    """The same for iterations of the trainer, one remain and one forget image a process."""
    ranks = meter.ranks
    config = load_config(
        None,
        {
            "iterations": 1_000_000,
            "batch_size": ranks.size,
            "mask.kind": "random",
            "mask.density": _DENSITY,
            "logging.every": 1_000_000,
            "logging.checkpoint_every": 1_000_000,
            **run.settings,
        },
    )
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    objective = Objective(
        copy.deepcopy(network),
        NoiseSchedule.from_betas(betas, **config.diffusion.model_dump()),
        ClassConditions(0, 1, _CLASSES),
        config,
        (3, image_size, image_size),
    )
    reducers: list[GradientReducer] = []

    def recorded(*args: Any, **options: Any) -> GradientReducer:
        reducers.append(GradientReducer(*args, **options))
        return reducers[-1]

    with mock.patch("pecker_fast.runs.learner.GradientReducer", recorded):
        trainer = PeckerTrainer(objective, ranks=ranks)
        iterate = trainer.run().__next__
        iterate()
    wire, ms = meter.measure(iterate)
    match = trainer.verify_frozen().frozen_changed == 0
    # One after the other: where they share their weights, asking for one puts it in place.
    for learned in ("generator", "pseudo_score"):
        digest = _digest(getattr(trainer, learned))
        match = (ranks.broadcast(digest) == digest) and match
    masked = run.settings.get("mask.kind") != "full"
    return Outcome(
        "iteration",
        run.name,
        _DENSITY if masked else None,
        bool(run.settings.get("optimizer.release_grads")),
        sum(param.numel() for param in network.parameters()),
        meter.everywhere(match),
        sum(reducer.bytes_per_step for reducer in reducers),
        wire,
        ms,
    )


def _digest(network: nn.Module) -> str:
    """One string for all bits of a network."""
    hashed = hashlib.sha256()
    for param in network.parameters():
        hashed.update(param.detach().numpy().tobytes())
    return hashed.hexdigest()
