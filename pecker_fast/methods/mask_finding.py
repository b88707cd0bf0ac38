"""The saliency of the methods: which entries the gradients of an objective's `saliency` need."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.scores import CONTRASTS, saliency_scores
from pecker_fast.methods.objective import MethodObjective
from pecker_fast.progress import each
from pecker_fast.runs.masked import choose_mask
from pecker_fast.runs.randomness import SALIENCY, IterationRandom

__all__ = ["find_mask"]


def find_mask(
    objective: MethodObjective[Any], network: nn.Module, *, progress: bool = False
) -> SaliencyMask:
    """The mask that `config.mask` and `config.saliency` describe.

    No weight changes; the network is put in eval mode.

    Args:
        objective: The loss and the configuration.
        network: On the objective's device. The mask covers its parameters that require a gradient.
        progress: Show a progress bar.

    Raises:
        PeckerError: A loss or a score is not finite.
    """
    config, saliency = objective.config, objective.config.saliency

    def scores() -> dict[str, Tensor]:
        network.eval()
        random = IterationRandom(config.seed, 0, objective.device, SALIENCY)
        count, forget, remain = objective.saliency(network, random)
        shown = each(forget, "saliency" if progress else None, count)
        return saliency_scores(
            network,
            shown,
            reduction=saliency.reduction,
            remain_losses=remain if saliency.reduction in CONTRASTS else None,
            clip_grad_norm=saliency.clip_grad_norm,
        )

    return choose_mask(config.mask, network, config.seed, scores)
