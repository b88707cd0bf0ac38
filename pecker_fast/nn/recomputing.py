"""Activations of blocks that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from pecker_fast.errors import PeckerError

__all__ = ["recompute_blocks_"]


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
        # The state of random generators cannot be read inside a CUDA graph; only dropout needs it.
        dropout = any(isinstance(part, nn.Dropout) and part.p for part in module.modules())
        return checkpoint(
            module.__call__, *inputs, use_reentrant=False,
            preserve_rng_state=dropout and module.training,
        )  # fmt: skip

    enable = getattr(network, "enable_gradient_checkpointing", None)
    if enable is None:
        raise PeckerError(
            f"recompute_blocks: {type(network).__name__} has no blocks that can be computed again; "
            "leave it out, or set recompute"
        )
    enable(again)
