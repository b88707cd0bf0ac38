"""SalUn's saliency: which entries the denoising of the real images to forget depends on.

One pass over every image of the class, in eval mode, with antithetic time steps and guided
predictions; each batch's gradient is scaled to norm 1 at most; the score is |sum of gradients|.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from tqdm import tqdm

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.scores import saliency_scores
from pecker_fast.methods.objective import BaselineObjective
from pecker_fast.runs.masked import choose_mask
from pecker_fast.runs.randomness import SALIENCY, IterationRandom

__all__ = ["find_mask"]


def find_mask(
    objective: BaselineObjective, network: nn.Module, *, progress: bool = False
) -> SaliencyMask:
    """The mask that `config.mask` and `config.saliency` describe.

    No weight changes; the network is put in eval mode.

    Args:
        objective: The images, the loss and the configuration.
        network: On the objective's device. The mask covers its parameters that require a gradient.
        progress: Show a progress bar.

    Raises:
        PeckerError: A loss or a score is not finite.
    """
    config, saliency = objective.config, objective.config.saliency

    def scores() -> dict[str, Tensor]:
        network.eval()
        random = IterationRandom(config.seed, 0, objective.device, SALIENCY)

        def mean_loss(part: Tensor) -> Tensor:
            batch = objective.images.to_score(part, random)
            return objective.saliency_loss(network, batch).mean()

        parts = tqdm(
            objective.images.saliency_parts(),
            desc="saliency",
            unit="batch",
            leave=False,
            disable=not progress,
        )
        return saliency_scores(
            network,
            (partial(mean_loss, part) for part in parts),
            reduction=saliency.reduction,
            clip_grad_norm=saliency.clip_grad_norm,
        )

    return choose_mask(config.mask, network, config.seed, scores)
