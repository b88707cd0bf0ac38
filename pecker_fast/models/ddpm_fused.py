"""The blocks of `DDPMUNet` on the fused operations, as `blocks` and `attention` for diffusers.

A residual block of the way up takes its skip as an argument of its own, so there is no up block to
switch. Attention's projections are 1x1 convolutions: of a channels_last image their outputs are
tokens by a view, and tokens are an image again by a view, so nothing is copied in between.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pecker_fast.models.ddpm import AttentionBlock, DDPMUNet, ResidualBlock
from pecker_fast.nn.accelerate import register_unet
from pecker_fast.nn.blocks import fused_residual, sum_of
from pecker_fast.nn.layers import (
    OBSERVED,
    end_block,
    image_of,
    is_transparent,
    projected,
    tokens_of,
)
from pecker_fast.nn.operations import group_norm
from pecker_fast.nn.skipping import conv2d

__all__ = ["FusedAttentionBlock", "FusedResidualBlock"]


class FusedResidualBlock(ResidualBlock):
    """`ResidualBlock` as `fused_residual`, without a concatenation."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        return None if _residual_is_transparent(block) else OBSERVED

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        """The block on concat(x, skip), as `ResidualBlock`.

        Returns:
            (N, C_out, H, W).
        """
        if not _residual_is_transparent(self):
            return super().forward(x, embedding, skip)
        added = sum_of(self.temb_cemb_proj(embedding), self.conv1.bias)
        return fused_residual(self, x, skip, added, self.nin_shortcut)


class FusedAttentionBlock(AttentionBlock):
    """`AttentionBlock` with the output's bias and the residual added in one pass."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        return None if is_transparent(block.norm, block.proj_out) else OBSERVED

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if not is_transparent(self.norm, self.proj_out):
            return super().forward(x)
        norm = self.norm
        normed, x, _ = group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=False)
        # (N, 1, H*W, C): one head.
        query, key, value = (
            part[:, None] for part in projected(tokens_of(normed), (self.q, self.k, self.v))
        )
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        image = image_of(attended, *x.shape[-2:])
        return end_block(conv2d(image, self.proj_out, None), [x], self.proj_out.bias)


def _residual_is_transparent(block: Any) -> bool:
    """Whether the layers that the fused residual block does not call are as they were made."""
    return is_transparent(
        block.norm1, block.conv1, block.norm2, block.dropout, block.conv2, block.nin_shortcut
    )


register_unet(DDPMUNet, ("norm_out", "act_out"), [FusedResidualBlock, FusedAttentionBlock])
