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
    from pecker_fast.distill.config import PeckerConfig as PeckerConfig
    from pecker_fast.distill.config import load_config as load_config
    from pecker_fast.distill.trainer import PeckerTrainer as PeckerTrainer
    from pecker_fast.erasure.api import erase as erase
    from pecker_fast.errors import PeckerError as PeckerError
    from pecker_fast.masks.mask import SaliencyMask as SaliencyMask
    from pecker_fast.masks.scores import saliency_scores as saliency_scores
    from pecker_fast.models import ModelFolder as ModelFolder
    from pecker_fast.models.one_step_pipeline import OneStepPipeline as OneStepPipeline
    from pecker_fast.nn.accelerate import fuse_ as fuse_
    from pecker_fast.nn.accelerate import unfuse_ as unfuse_
    from pecker_fast.optim.adamw import MaskedAdamW as MaskedAdamW
    from pecker_fast.optim.delta import Delta as Delta
    from pecker_fast.optim.delta import apply_delta as apply_delta
    from pecker_fast.patches.patch import apply_patch as apply_patch
    from pecker_fast.patches.patch import remove_patch as remove_patch
    from pecker_fast.patches.patch import save_patch as save_patch

__version__ = "0.1.0"
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
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the optimizer must not cost an import of diffusers, nor `--help` torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'pecker_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pecker_fast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
