"""SalUn's saliency: which entries the denoising of the real images to forget depends on.

One pass over every image of the class, in eval mode, with antithetic time steps and guided
predictions; each batch's gradient is scaled to norm 1 at most; the score is |sum of gradients|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from tqdm import tqdm

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.scores import saliency_scores
from pecker_fast.methods.objective import BaselineObjective
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
    config = objective.config
    choice, saliency = config.mask, config.saliency
    if choice.kind == "full":
        return SaliencyMask.full(network)
    if choice.kind == "random":
        return SaliencyMask.random(
            network,
            choice.density,
            config.seed,
            choice.scope,
            choice.granularity,
            choice.block_size,
        )
    network.eval()
    random = IterationRandom(config.seed, 0, objective.device, SALIENCY)

    def losses() -> Iterator[Callable[[], Tensor]]:
        draws = objective.images.saliency_batches()
        for draw in tqdm(draws, desc="saliency", unit="batch", leave=False, disable=not progress):
            batch = draw(random)
            yield lambda batch=batch: objective.saliency_loss(network, batch).mean()  # type: ignore[misc]

    scores = saliency_scores(
        network, losses(), reduction=saliency.reduction, clip_grad_norm=saliency.clip_grad_norm
    )
    return SaliencyMask.from_scores(
        scores, choice.density, choice.scope, choice.granularity, choice.block_size
    )
