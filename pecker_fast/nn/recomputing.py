"""Activations of blocks that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from pecker_fast.errors import PeckerError

__all__ = ["computed_again", "recompute_blocks_"]


def computed_again(function: Callable[..., Any], *inputs: Any, draws: nn.Module) -> Any:
    """What the function returns; its backward pass computes it again instead of keeping it.

    Args:
        function: any.
        inputs: its own.
        draws: the module that it runs, whose dropout is drawn again as it was.
    """
    # The state of random generators cannot be read inside a CUDA graph; only dropout needs it.
    dropout = any(isinstance(part, nn.Dropout) and part.p for part in draws.modules())
    return checkpoint(
        function, *inputs, use_reentrant=False, preserve_rng_state=dropout and draws.training
    )


def recompute_blocks_(network: nn.Module) -> None:
    """Keep only what goes into each block of a network of diffusers (Chen et al. 2016).

    The same bits for a forward pass more, of each block when its backward pass comes. The weights
    that are in place then are those that count, as for any backward pass.

    Args:
        network: Its modules are told; fused blocks keep what they keep.

    Raises:
        PeckerError: It has no such blocks.
    """

    def again(module: nn.Module, *inputs: Any) -> Any:
        return computed_again(module.__call__, *inputs, draws=module)

    enable = getattr(network, "enable_gradient_checkpointing", None)
    if enable is None:
        raise PeckerError(
            f"recompute_blocks: {type(network).__name__} has no blocks that can be computed again; "
            "leave it out, or set recompute"
        )
    enable(again)
