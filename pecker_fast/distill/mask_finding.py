"""The saliency of the distillation: which of the generator's entries the forgetting needs.

No data: the images are the generator's own. Gradients are taken at its present weights, g_f of the
class to forget and g_r of those to keep:

    forget          |sum g_f|                         of  lambda_forget * ell, the terms of the
    retain_aware    |sum g_f| / root mean square g_r      generator loss itself
    denoise         |sum g_f|                         of  || e - eps_theta(x_t, t, c) ||^2, the
    fisher_ratio    sum g_f^2 / sum g_r^2                 denoising loss on those images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.network_set import NetworkSet, equal_networks
from pecker_fast.distill.objective import Objective
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.scores import CONTRASTS, Reduction, saliency_scores
from pecker_fast.progress import each
from pecker_fast.runs.masked import choose_mask
from pecker_fast.runs.randomness import SALIENCY, IterationRandom

__all__ = ["find_mask"]

_REDUCTIONS: dict[str, Reduction] = {
    "forget": "abs_of_sum",
    "denoise": "abs_of_sum",
    "retain_aware": "retain_aware",
    "fisher_ratio": "fisher_ratio",
}


def find_mask(
    objective: Objective,
    networks: NetworkSet | None = None,
    *,
    iteration: int = 0,
    progress: bool = False,
) -> SaliencyMask:
    """The mask that `config.mask` and `config.saliency` describe, for the generator.

    No weight changes; the networks are put in eval mode.

    Args:
        objective: The losses and the configuration.
        networks: The mask covers the parameters of the generator that require a gradient. None =
            generator and pseudo-score are copies of the teacher, which is how a run starts.
        iteration: The training iteration at which the mask is found: with the seed it decides the
            random numbers.
        progress: Show a progress bar.

    Raises:
        PeckerError: A loss or score is not finite, no entry has any saliency, or retain_aware
            without a first stage.
    """
    config, saliency = objective.config, objective.config.saliency
    reduction = _REDUCTIONS[saliency.kind]
    if networks is None:
        config.check_saliency(pseudo_score=False)
        networks = equal_networks(objective.teacher)

    def scores() -> dict[str, Tensor]:
        generator = networks.use("generator").eval()
        pseudo_score = networks.use("pseudo_score").eval()
        random = IterationRandom(config.seed, iteration, objective.device, SALIENCY)

        def batches(half: slice, title: str) -> Iterator[Callable[[], Tensor]]:
            for _ in each(range(saliency.batches), title if progress else None):
                labels = objective.conditions.draw(saliency.batch_size, random)[half]
                yield partial(_loss, objective, networks, labels, random)

        forget = batches(slice(saliency.batch_size, None), "saliency")
        remain = batches(slice(saliency.batch_size), "saliency of the rest")
        with _without_gradients(pseudo_score):
            found = saliency_scores(
                generator,
                forget,
                reduction=reduction,
                remain_losses=remain if reduction in CONTRASTS else None,
                clip_grad_norm=saliency.clip_grad_norm,
            )
        if not any(bool(score.any()) for score in found.values()):
            raise PeckerError(
                f"every saliency is 0: the gradient of {saliency.kind} vanishes at these weights, "
                "so it ranks nothing; choose another saliency.kind or mask.kind"
            )
        return found

    return choose_mask(config.mask, networks.use("generator"), config.seed + iteration, scores)


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """No parameter of the network requires a gradient, which saves its part of the graph."""
    learning = [param for param in network.parameters() if param.requires_grad]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for param in learning:
            param.requires_grad_(True)


def _loss(
    objective: Objective, networks: NetworkSet, labels: Conditions, random: IterationRandom
) -> Tensor:
    """The loss of one batch whose gradient is the saliency; a scalar."""
    config = objective.config
    draws = objective.draw(random, len(labels))
    generator = networks.use("generator")
    if config.saliency.kind in ("denoise", "fisher_ratio"):
        with torch.no_grad():
            x_g = objective.sample(generator, draws.noise, labels.student)
        return objective.denoising(generator, x_g, draws, labels).mean()
    x_g = objective.sample(generator, draws.noise, labels.student)
    weight = x_g.new_full((len(labels),), config.generator.lambda_forget / len(labels))
    losses, gradient = objective.score(networks, x_g, draws, labels, weight)
    networks.use("generator")
    # `saliency_scores` wants a scalar to differentiate: the value of the loss, whose gradient goes
    # through the generator alone. `objective.score` has passed the other two networks already.
    surrogate = (x_g * gradient).sum()
    return (weight * losses).sum() + (surrogate - surrogate.detach())
