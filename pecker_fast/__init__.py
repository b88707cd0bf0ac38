"""Erase a class from a diffusion model, in less time and memory, and prove it.

`MaskedAdamW` is a drop-in for `torch.optim.AdamW`; `SaliencyMask` and `saliency_scores` say which
entries it may change; `PeckerTrainer` is the distillation that makes a model forget; `fuse_`
switches a diffusers U-Net to fused operations; `save_patch`, `apply_patch` and `remove_patch` keep
what was erased in a small file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pecker_fast.distill.config import PeckerConfig, load_config
    from pecker_fast.distill.trainer import PeckerTrainer
    from pecker_fast.erasure.api import erase
    from pecker_fast.errors import PeckerError
    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.masks.scores import saliency_scores
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.one_step_pipeline import OneStepPipeline
    from pecker_fast.nn.accelerate import fuse_, unfuse_
    from pecker_fast.optim.adamw import MaskedAdamW
    from pecker_fast.optim.delta import Delta, apply_delta
    from pecker_fast.patches.patch import apply_patch, remove_patch, save_patch

__version__ = "0.1.0"
__all__ = [
    "Delta",
    "MaskedAdamW",
    "ModelFolder",
    "OneStepPipeline",
    "PeckerConfig",
    "PeckerError",
    "PeckerTrainer",
    "SaliencyMask",
    "apply_delta",
    "apply_patch",
    "erase",
    "fuse_",
    "load_config",
    "remove_patch",
    "saliency_scores",
    "save_patch",
    "unfuse_",
]

_HOMES = {
    "Delta": "optim.delta",
    "MaskedAdamW": "optim.adamw",
    "ModelFolder": "models",
    "OneStepPipeline": "models.one_step_pipeline",
    "PeckerConfig": "distill.config",
    "PeckerError": "errors",
    "PeckerTrainer": "distill.trainer",
    "SaliencyMask": "masks.mask",
    "apply_delta": "optim.delta",
    "apply_patch": "patches.patch",
    "erase": "erasure.api",
    "fuse_": "nn.accelerate",
    "load_config": "distill.config",
    "remove_patch": "patches.patch",
    "saliency_scores": "masks.scores",
    "save_patch": "patches.patch",
    "unfuse_": "nn.accelerate",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the optimizer must not cost an import of diffusers, nor `--help` torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'pecker_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pecker_fast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
