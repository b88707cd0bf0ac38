"""Attention over images that never leaves channels_last.

diffusers turns an image into tokens and back by transposing, and makes the way back contiguous:
with channels_last activations the first is a view, the second copies the image into the other
layout, and the next convolution copies it back. Here both are views, the biases of the output
projections are added in the pass that adds the residual and takes the statistics of the next norm,
and the norm hands its input on to the residual, so that both gradients of the input are written by
one kernel. Query, key and value are strided views of the one product that makes them, as
`scaled_dot_product_attention` takes them. Of the transformer blocks the gated unit is fused, and
each norm with the residual sum before it and the gradient of the residual around what follows.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from pecker_fast.nn.layers import (
    OBSERVED,
    end_block,
    image_of,
    is_transparent,
    projected,
    tokens_of,
)
from pecker_fast.nn.operations import geglu, group_norm, layer_norm
from pecker_fast.nn.reference import LayerNormResult
from pecker_fast.nn.skipping import SlicedConv2d, conv2d, linear

__all__ = ["FusedAttention", "FusedGEGLU", "FusedTransformer2DModel", "FusedTransformerBlock"]


class FusedGEGLU(GEGLU):
    """`GEGLU` in one pass behind its projection, which is all that it keeps."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path: nothing."""
        return None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, L, D) to (N, L, C)."""
        if args or kwargs:  # deprecated ones
            result: Tensor = super().forward(hidden_states, *args, **kwargs)
            return result
        return geglu(self.proj(hidden_states))


class FusedTransformerBlock(BasicTransformerBlock):
    """`BasicTransformerBlock` of layer norms, each in one pass with the residual before it."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        if block.norm_type != "layer_norm":
            return f"norm {block.norm_type}"
        if block.pos_embed is not None:
            return "embeds positions"
        if any(norm.weight is None or norm.bias is None for norm in _layer_norms(block)):
            return "no scale and shift"
        return None if is_transparent(*_layer_norms(block)) else OBSERVED

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(N, L, D) and (N, L', D') text to (N, L, D)."""
        options = cross_attention_kwargs or {}
        if (
            "scale" in options  # deprecated there
            or "gligen" in options
            or self._chunk_size is not None
            or not is_transparent(*_layer_norms(self))
        ):
            result: Tensor = super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            )
            return result
        normed, hidden = _normalised(self.norm1, hidden_states)
        added = self.attn1(
            normed,
            encoder_hidden_states=encoder_hidden_states if self.only_cross_attention else None,
            attention_mask=attention_mask,
            **options,
        )
        if self.attn2 is not None:
            normed, hidden = _normalised(self.norm2, hidden, added)
            added = self.attn2(
                normed,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                **options,
            )
        normed, hidden = _normalised(self.norm3, hidden, added)
        return self.ff(normed) + hidden


def _layer_norms(block: Any) -> list[nn.LayerNorm]:
    """Those that a fused transformer block does not call."""
    return [block.norm1, *([] if block.attn2 is None else [block.norm2]), block.norm3]


def _normalised(norm: Any, x: Tensor, add: Tensor | None = None) -> LayerNormResult:
    return layer_norm(x, norm.weight, norm.bias, norm.eps, add)


class FusedAttention(Attention):
    """`Attention` of an image with itself: group norm inside, residual around."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        if block.group_norm is None:
            return "no group norm inside"
        if not block.residual_connection:
            return "no residual"
        if block.spatial_norm is not None or block.norm_q is not None or block.norm_k is not None:
            return "more norms inside"
        if type(block.processor) is not AttnProcessor2_0:
            return f"processor {type(block.processor).__name__}"
        return None if is_transparent(block.group_norm, *block.to_out) else OBSERVED

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """(N, C, H, W) to (N, C, H, W); another input, or other tokens to attend to: as diffusers.

        `temb` is for a spatial norm, which a fused attention does not have.
        """
        to_out, dropout = self.to_out
        if (
            hidden_states.ndim != 4
            or encoder_hidden_states is not None
            or attention_mask is not None
            or cross_attention_kwargs
            or type(self.processor) is not AttnProcessor2_0
            or (dropout.training and dropout.p > 0)  # acts before the residual, bias included
            or not is_transparent(self.group_norm, to_out, dropout)
        ):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                attention_mask,
                temb=temb,
                **cross_attention_kwargs,
            )
        norm = self.group_norm
        normed, x, _ = group_norm(
            hidden_states, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=False
        )
        query, key, value = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in projected(tokens_of(normed), (self.to_q, self.to_k, self.to_v))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = linear(attended.transpose(1, 2).flatten(2), to_out, None)
        image = image_of(tokens, *hidden_states.shape[-2:])
        return end_block(image, [x], to_out.bias, self.rescale_output_factor)


class FusedTransformer2DModel(Transformer2DModel):
    """`Transformer2DModel` over images: norm, projections and residual around its blocks.

    A projection given as a 1x1 convolution is computed as the matrix product that it is.
    """

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        if not block.is_input_continuous:
            return "not over an image"
        if is_transparent(block.norm, block.proj_in, block.proj_out):
            return None
        return OBSERVED

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """(N, C, H, W) and (N, L, D) text to (N, C, H, W), wrapped as diffusers does."""
        masks = (attention_mask, encoder_attention_mask)
        if (
            "scale" in (cross_attention_kwargs or {})  # deprecated there
            or any(mask is not None and mask.ndim == 2 for mask in masks)  # to be made a bias
            or self.gradient_checkpointing
            or not is_transparent(self.norm, self.proj_in, self.proj_out)
        ):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                timestep,
                added_cond_kwargs,
                class_labels,
                cross_attention_kwargs,
                attention_mask,
                encoder_attention_mask,
                return_dict,
            )
        norm = self.norm
        normed, x, _ = group_norm(
            hidden_states, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=False
        )
        height, width = hidden_states.shape[-2:]
        tokens = _project(tokens_of(normed), self.proj_in, self.proj_in.bias, height, width)
        for block in self.transformer_blocks:
            tokens = block(
                tokens,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                timestep=timestep,
                cross_attention_kwargs=cross_attention_kwargs,
                class_labels=class_labels,
            )
        tokens = _project(tokens, self.proj_out, None, height, width)
        output = end_block(image_of(tokens, height, width), [x], self.proj_out.bias)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def _project(tokens: Tensor, layer: Any, bias: Tensor | None, height: int, width: int) -> Tensor:
    """(N, H*W, C) through a linear layer or a 1x1 convolution, with `bias` instead of its own."""
    if isinstance(layer, SlicedConv2d):  # computes some rows of its weight's gradient only
        return tokens_of(conv2d(image_of(tokens, height, width), layer, bias))
    if isinstance(layer, nn.Conv2d):
        return F.linear(tokens, layer.weight.flatten(1), bias)
    return linear(tokens, layer, bias)
