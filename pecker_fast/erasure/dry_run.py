"""What an erasure will take, before it is started: `runs/dry_run.py` of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pecker_fast.erasure.run import Task
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.progress import quiet
from pecker_fast.runs import dry_run
from pecker_fast.runs.dry_run import DryRun, Trial
from pecker_fast.runs.memory_model import Peak, model_peak, outside, replaced

__all__ = ["try_out"]

_MODELLED = {
    "optimizer.backend": "reference", "accelerate": False, "graph": "off", "saliency.batches": 1,
}  # fmt: skip
"""What the model runs with: torch's blocks, and of the mask's gradients the first."""


def try_out(task: Task) -> DryRun:
    """Compute what a task's run takes, then try it.

    Raises:
        PeckerError: it does not fit; one line, with the settings that make it fit.
    """
    site, config = task.site, task.config
    searches, first = int(site.mask is None and config.mask.kind == "saliency"), {}
    if searches and not (isinstance(config, BaselineConfig) and not config.data_free):
        searches, first = config.saliency.batches, {"saliency.batches": 1}
    trial = Trial(
        config=config,
        device=site.device,
        out=site.out,
        network=task.original,
        held=sum(param.nbytes for param in task.original.parameters()),
        model=lambda values: _modelled(task, values),
        start=lambda values: task.tried({**values, **first}, lambda network: network).start(None),
        mask=config.mask.kind if site.mask is None else "given",
        searches=searches,
        result_bytes=task.result_bytes,
    )
    return dry_run.try_out(trial)


def _modelled(task: Task, values: Mapping[str, Any]) -> Peak:
    """What a task takes with some settings changed."""
    objective = task.objective
    objective.schedule.tables(objective.device, objective.dtype)  # kept, so they must be real
    known = task.config.flat()
    fixed = {key: value for key, value in _MODELLED.items() if key in known}

    def start(copied: Callable[[nn.Module], nn.Module]) -> Any:
        return task.tried({**values, **fixed}, copied).start(None)

    # Their values decide which prompts are drawn.
    drawn = type(getattr(objective, "conditions", objective))
    changes = [(drawn, "draw", outside(drawn.draw))] if hasattr(drawn, "draw") else []
    with replaced(*changes), quiet():
        return model_peak(start, task.site.device)
