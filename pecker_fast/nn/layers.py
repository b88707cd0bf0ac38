"""Layers that do more in one pass, and what the fused blocks share.

Each class overrides `forward` of the layer it is named after and adds no parameter, so a module
becomes one by `module.__class__ = ...` and ceases to be one the same way; `accelerate` does both.
`obstacle` says why a module cannot, None if it can. A call that cannot be fused (a hook is to see
an intermediate result, an argument is unusual) runs the overridden forward.

Activations are channels_last throughout: an image as tokens (N, H*W, C) and back are views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from pecker_fast.nn.operations import group_norm, residual_add
from pecker_fast.nn.skipping import SlicedConv2d, SlicedLinear, SlicedWinogradConv2d
from pecker_fast.nn.winograd import WinogradConv2d

__all__ = [
    "OBSERVED",
    "AppliedSiLU",
    "FusedGroupNorm",
    "FusedGroupNormSiLU",
    "FusedUpsample2D",
    "end_block",
    "image_of",
    "is_transparent",
    "is_unobserved",
    "projected",
    "tokens_of",
]

OBSERVED = "hooks or a replaced layer inside"
"""The obstacle of a block some layer of which is not `is_transparent`."""

# Layers that a fused block may stand in for without calling them.
_LAYERS = (
    nn.Conv2d,
    nn.Dropout,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Linear,
    nn.SiLU,
    SlicedConv2d,
    SlicedLinear,
    SlicedWinogradConv2d,
    WinogradConv2d,
)

_PROJECTIONS = (nn.Conv2d, WinogradConv2d, nn.Linear)  # that `projected` may join

_INT32_ELEMENTS = 2**31


def is_unobserved(module: nn.Module) -> bool:
    """Whether a call of `module` runs its class' forward and nothing else, such as a hook."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_transparent(*layers: nn.Module | None) -> bool:
    """Whether a fused block may do what the layers do, with their parameters, and not call them.

    Hooks, a `forward` set on the object and classes of their own (adapters, parametrizations) would
    be passed by.
    """
    return all(
        layer is None or (type(layer) in _LAYERS and is_unobserved(layer)) for layer in layers
    )


def tokens_of(image: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H*W, C): a view of a channels_last image."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def image_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """(N, H*W, C) as (N, C, H, W): a channels_last view."""
    return tokens.view(len(tokens), height, width, tokens.shape[2]).permute(0, 3, 1, 2)


def projected(tokens: Tensor, layers: Sequence[Any]) -> Sequence[Tensor]:
    """What linear layers or 1x1 convolutions make of the same tokens, by one product.

    Query, key and value are so written, and the gradient of the tokens made, once. Layers of other
    classes and with hooks are called.

    Args:
        tokens: (N, L, C), a view of a channels_last image where there are convolutions.
        layers: All of them linear, or all of them convolutions.

    Returns:
        (N, L, C_i) of each, views of one tensor if they were joined.
    """
    plain = all(type(layer) in _PROJECTIONS and is_unobserved(layer) for layer in layers)
    if plain and len({layer.bias is None for layer in layers}) == 1:
        weight = torch.cat([layer.weight.flatten(1) for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        product = F.linear(tokens, weight, torch.cat(biases) if biases else None)
        return torch.split(product, [len(layer.weight) for layer in layers], dim=-1)
    if isinstance(layers[0], nn.Conv2d):
        image = image_of(tokens, tokens.shape[1], 1)  # of any shape: the taps are one pixel
        return [tokens_of(layer(image)) for layer in layers]
    return [layer(tokens) for layer in layers]


def end_block(
    hidden: Tensor, shortcuts: Sequence[Tensor], bias: Tensor | None, divisor: float = 1.0
) -> Tensor:
    """`residual_add` in the wider of the dtypes of `hidden` and the shortcuts, as torch adds.

    They differ only where a block under autocast is given float32 activations.
    """
    for shortcut in shortcuts:
        hidden = hidden.to(torch.promote_types(hidden.dtype, shortcut.dtype))
    return residual_add(hidden, shortcuts, bias, divisor)


class FusedGroupNorm(nn.GroupNorm):
    """`GroupNorm` of a channels_last image without leaving that layout."""

    @staticmethod
    def obstacle(norm: nn.GroupNorm) -> str | None:
        """Why `norm` stays on the torch path; None if it need not."""
        return None if norm.affine else "no scale and shift"

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) normalised; any other number of dimensions goes to torch."""
        if input.ndim != 4:
            return super().forward(input)
        return group_norm(input, self.weight, self.bias, self.num_groups, self.eps, silu=False).y


class FusedGroupNormSiLU(FusedGroupNorm):
    """`GroupNorm` that applies the SiLU behind it too: the last norm of a U-Net.

    The output carries the mark by which `AppliedSiLU` knows. With a hook on this layer, which is to
    see the norm's own output, the SiLU is left to its own module.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) normalised and activated."""
        if input.ndim != 4 or self._forward_hooks or self._backward_hooks:
            return super().forward(input)
        y = group_norm(input, self.weight, self.bias, self.num_groups, self.eps, silu=True).y
        y.silu_applied = True  # type: ignore[attr-defined]
        return y


class AppliedSiLU(nn.SiLU):
    """SiLU that a `FusedGroupNormSiLU` before it has already applied, where it has.

    Args:
        former: The module in whose place this one stands, kept for the way back. It may be shared
            with other blocks and networks, so it is replaced instead of changed.
    """

    def __init__(self, former: nn.SiLU) -> None:
        super().__init__()
        self.train(former.training)
        self.former = (former,)  # in a tuple: not a submodule

    def forward(self, input: Tensor) -> Tensor:
        """The input itself if it carries the mark, else its SiLU."""
        return input if getattr(input, "silu_applied", False) else super().forward(input)


class FusedUpsample2D(Upsample2D):
    """`Upsample2D` (nearest neighbour, then a convolution) that stays in channels_last.

    diffusers makes a batch of 64 or more contiguous (NCHW) first, and the convolution then copies
    an image of four times the size back.
    """

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        if block.use_conv_transpose or not block.use_conv or not block.interpolate:
            return "not nearest neighbour and a convolution"
        return None if block.norm is None else "a norm inside"

    def forward(
        self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """(N, C, H, W) to (N, C_out, 2 H, 2 W), or to (H', W') = `output_size`."""
        samples, channels, height, width = hidden_states.shape
        size = (2 * height, 2 * width) if output_size is None else tuple(output_size)
        # torch's channels_last kernel counts in 32 bits in some of the supported versions.
        if args or kwargs or samples * channels * math.prod(size) >= _INT32_ELEMENTS:
            return super().forward(hidden_states, output_size, *args, **kwargs)
        conv = self.conv if self.name == "conv" else self.Conv2d_0
        return conv(F.interpolate(hidden_states, size=size, mode="nearest"))
