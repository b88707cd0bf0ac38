"""What the fused operations of a U-Net block compute, in plain torch: the specification.

Any device, dtype and memory format; autograd makes the gradients. `operations` computes the same in
few passes over channels_last activations where Triton runs.

    group_norm     y = dropout(silu((v - mean_g) / sqrt(var_g + eps) * weight + bias))
                   v = concat(x, skip) + add             mean and variance per sample and group
    residual_add   (hidden + bias + sum of shortcuts) / divisor
    layer_norm     y = (total - mean) / sqrt(var + eps) * weight + bias      total = x + add
    geglu          hidden * gelu(gate)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "GroupNormResult", "LayerNormResult", "geglu", "group_norm", "layer_norm", "residual_add",
]  # fmt: skip


class GroupNormResult(NamedTuple):
    """What `group_norm` returns.

    Attributes:
        y: (N, C, H, W) normalised activations.
        x: The first input again, for the shortcut around the block: its gradient is added where
            that of the norm is written, instead of in a pass of its own.
        skip: The second input again, if there was one.
    """

    y: Tensor
    x: Tensor
    skip: Tensor | None


class LayerNormResult(NamedTuple):
    """What `layer_norm` returns.

    Attributes:
        y: (..., C) normalised activations.
        total: What was normalised, for the residual around what follows: its gradient is added
            where that of the norm is written, instead of in a pass of its own.
    """

    y: Tensor
    total: Tensor


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    silu: bool = True,
    dropout: float = 0.0,
) -> GroupNormResult:
    """Group normalisation with what surrounds it in a residual block.

    Args:
        x: (N, C1, H, W) activations.
        weight: (C,) scale, C = C1 + C2.
        bias: (C,) shift.
        groups: Number of groups; divides C.
        eps: Added to the variance.
        skip: (N, C2, H, W) from the encoder, read as channels C1 .. C - 1. None: C2 is 0.
        add: (N, C) or (C,) added to the activations first: the bias of the convolution before and
            the embedding of time and class.
        silu: Apply x * sigmoid(x).
        dropout: Probability with which an element becomes 0; the others are divided by
            1 - dropout. Drawn from torch's global generator.

    Returns:
        y and the inputs, see `GroupNormResult`. y has the dtype of `x`; arithmetic is float32, or
        float64 for float64 activations.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    value = x if skip is None else torch.cat([x, skip], dim=1)
    value = value.to(wide)
    if add is not None:
        value = value + add.to(wide).reshape(-1, value.shape[1], 1, 1)
    y = F.group_norm(value, groups, weight.to(wide), bias.to(wide), eps)
    if silu:
        y = F.silu(y)
    if dropout > 0:
        y = F.dropout(y, dropout, training=True)
    return GroupNormResult(y.to(x.dtype), x, skip)


def residual_add(
    hidden: Tensor,
    shortcuts: Sequence[Tensor],
    bias: Tensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """The end of a residual block: (hidden + bias + sum of shortcuts) / divisor.

    Args:
        hidden: (N, C, H, W) from the block's last convolution, without its bias.
        shortcuts: One or two (N, C, H, W): the block's input, or its 1x1 convolutions.
        bias: (C,) of the convolutions that made the operands. None: 0.
        divisor: The block's output scale factor.

    Returns:
        (N, C, H, W) in the dtype of `hidden`; summed in float32 (float64) and rounded once.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    total = hidden.to(wide)
    if bias is not None:
        total = total + bias.to(wide).view(1, -1, 1, 1)
    for shortcut in shortcuts:
        total = total + shortcut.to(wide)
    return (total / divisor).to(hidden.dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, add: Tensor | None = None
) -> LayerNormResult:
    """A residual sum and the norm behind it, as in a transformer block.

    Args:
        x: (..., C) activations.
        weight: (C,) scale.
        bias: (C,) shift.
        eps: Added to the variance.
        add: (..., C) what the block's last branch adds. None: 0.

    Returns:
        y and the sum, see `LayerNormResult`, in the wider of the dtypes of `x` and `add`; the sum
        is rounded before it is normalised. Arithmetic is float32, or float64 for float64 sums.
    """
    total = x if add is None else x + add
    wide = torch.float64 if total.dtype == torch.float64 else torch.float32
    y = F.layer_norm(total.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps)
    return LayerNormResult(y.to(total.dtype), total)


def geglu(product: Tensor) -> Tensor:
    """The gated unit of a transformer's feed-forward layer.

    Args:
        product: (..., 2 C) hidden, then gate, of the layer's one projection.

    Returns:
        (..., C) hidden * gelu(gate) in the dtype of `product`, rounded once.
    """
    wide = torch.float64 if product.dtype == torch.float64 else torch.float32
    hidden, gate = product.to(wide).chunk(2, dim=-1)
    return (hidden * F.gelu(gate)).to(product.dtype)
