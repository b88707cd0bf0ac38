"""Published scores: what other methods rank entries by, for `SaliencyMask.from_scores`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pecker_fast.masks.checks import Model, trainable_parameters
from pecker_fast.masks.scores import LossFn, saliency_scores

__all__ = ["fisher", "magnitude", "snip", "wanda"]


def magnitude(model: Model) -> dict[str, Tensor]:
    """|w| (Han et al. 2015, arXiv:1506.02626)."""
    return {name: param.detach().abs() for name, param in trainable_parameters(model).items()}


def snip(model: Model, losses: Iterable[LossFn] | LossFn) -> dict[str, Tensor]:
    """|w g|, with g the sum over batches (SNIP: Lee et al. 2019, arXiv:1810.02340)."""
    weights, gradients = magnitude(model), saliency_scores(model, losses)
    return {name: gradient.mul_(weights[name]) for name, gradient in gradients.items()}


def fisher(model: Model, losses: Iterable[LossFn] | LossFn) -> dict[str, Tensor]:
    """The sum of g^2 over batches (FISH masks: Sung et al. 2021, arXiv:2111.09839)."""
    return saliency_scores(model, losses, reduction="sum_of_squares")


@torch.no_grad()
def wanda(model: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """|w| times the 2-norm of its input, for weights of nn.Linear alone (arXiv:2306.11695).

    Wanda (Sun et al. 2023) compares the entries of one output with each other only: use
    `SaliencyMask.n_of_m`, or `from_scores` with scope "per_tensor".

    Args:
        model: a module.
        run: calls it on the data, as often as it likes.

    Returns:
        name -> float32 scores of each trainable weight whose layer was run.
    """
    squares: dict[nn.Module, Tensor] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        square = inputs[0].detach().float().square().flatten(0, -2).sum(0)
        squares[layer] = squares.get(layer, 0) + square

    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    hooks = [layer.register_forward_pre_hook(see) for layer in layers.values()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    names = {param: name for name, param in trainable_parameters(model).items()}
    return {
        names[layer.weight]: layer.weight.float().abs() * squares[layer].sqrt()
        for layer in layers.values()
        if layer in squares and layer.weight in names
    }
