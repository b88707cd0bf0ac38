"""Score forgetting distillation under a saliency mask: the method itself."""

from pecker_fast.distill.conditions import ClassConditions
from pecker_fast.distill.config import PeckerConfig, load_config, recipe_names
from pecker_fast.distill.losses import one_step_sample
from pecker_fast.distill.mask_finding import find_mask
from pecker_fast.distill.networks import NoisePredictor, predict_noise
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.runs.checkpoint import RunDirectory
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
