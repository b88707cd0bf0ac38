"""The objective that a configuration's method has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.objective import BaselineObjective, MethodObjective
from pecker_fast.methods.redirect import RedirectObjective
from pecker_fast.models.pipeline import PipelineFolder

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["method_objective"]


def method_objective(
    model: ModelFolder | PipelineFolder,
    config: BaselineConfig,
    images: ImageSet | None,
    device: torch.device | None = None,
) -> MethodObjective[Any]:
    """What a method minimises.

    Args:
        model: The model that must forget; a pipeline where `config.text` says what.
        config: The run.
        images: What the model was trained on; None where `config.data_free`.
        device: None = where the network is.

    Raises:
        PeckerError: Images, classes, prompts or a schedule that do not fit.
    """
    if config.data_free:
        return RedirectObjective(model, config, device)
    assert images is not None and not isinstance(model, PipelineFolder)  # `text` is data_free
    return BaselineObjective(model, images, config, device)
