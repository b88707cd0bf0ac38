"""Score forgetting distillation under a saliency mask: the method itself."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pecker_fast.distill.conditions import ClassConditions
    from pecker_fast.distill.config import PeckerConfig, load_config, recipe_names
    from pecker_fast.distill.losses import one_step_sample
    from pecker_fast.distill.mask_finding import find_mask
    from pecker_fast.distill.networks import NoisePredictor, predict_noise
    from pecker_fast.distill.objective import Objective
    from pecker_fast.distill.schedule import NoiseSchedule
    from pecker_fast.distill.trainer import PeckerTrainer
    from pecker_fast.runs.directory import RunDirectory
    from pecker_fast.runs.metrics import LOSS_NAMES, Metrics

__all__ = [
    "LOSS_NAMES",
    "ClassConditions",
    "Metrics",
    "NoisePredictor",
    "NoiseSchedule",
    "Objective",
    "PeckerConfig",
    "PeckerTrainer",
    "RunDirectory",
    "find_mask",
    "load_config",
    "one_step_sample",
    "predict_noise",
    "recipe_names",
]

_HOMES = {
    "runs.metrics": ("LOSS_NAMES", "Metrics"),
    "runs.directory": ("RunDirectory",),
    "distill.conditions": ("ClassConditions",),
    "distill.config": ("PeckerConfig", "load_config", "recipe_names"),
    "distill.losses": ("one_step_sample",),
    "distill.mask_finding": ("find_mask",),
    "distill.networks": ("NoisePredictor", "predict_noise"),
    "distill.objective": ("Objective",),
    "distill.schedule": ("NoiseSchedule",),
    "distill.trainer": ("PeckerTrainer",),
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line reads a configuration before torch is there.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"pecker_fast.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
