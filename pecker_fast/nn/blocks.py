"""The residual block of diffusers' U-Nets in three passes, and up blocks that concatenate nothing.

What a `ResnetBlock2D` reads and writes of a whole activation besides its two convolutions (no
shortcut convolution, dropout on, torch's group norm given channels_last free of charge):

    forward          torch: reads, writes                            fused: reads, writes
    norm1 + SiLU     norm 2, 1   SiLU 1, 1                           apply 1, 1
    conv1, embedding bias 1, 1   embedding 1, 1                      -
    norm2 + SiLU     norm 2, 1   SiLU 1, 1   dropout 1, 1 + mask     statistics 1   apply 1, 1
    end of block     bias 1, 1   residual 2, 1   divisor 1, 1        one pass 2, 1
                     23 and a mask                                   8

    backward         divisor 1, 1   bias 1                           bias 1
    norm2 + SiLU     dropout 1, 1 + mask   SiLU 2, 1   norm 4, 1     sums 2   apply 2, 1
    conv1, embedding embedding 1   bias 1                            -
    norm1 + SiLU     SiLU 2, 1   norm 4, 1                           sums 2   apply 3, 1
    input            shortcut's gradient added 2, 1                  -
                     26 and a mask                                   12

The statistics of norm1 come from the pass that ended the block before. In an up block, `torch.cat`
(1, 1 forward; the two halves of the gradient are views) is gone as well: the norm reads both
sources, and a shortcut convolution runs on each with its columns of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AttnUpBlock2D, CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn

from pecker_fast.nn.layers import OBSERVED, end_block, is_transparent, is_unobserved
from pecker_fast.nn.operations import group_norm
from pecker_fast.nn.skipping import conv2d

__all__ = [
    "FusedAttnUpBlock2D",
    "FusedCrossAttnUpBlock2D",
    "FusedResnetBlock2D",
    "FusedUpBlock2D",
    "fused_residual",
    "sum_of",
]


def fused_residual(
    block: Any,
    x: Tensor,
    skip: Tensor | None,
    added: Tensor | None,
    shortcut: nn.Conv2d | None,
    divisor: float = 1.0,
) -> Tensor:
    """A residual block on concat(x, skip) as group_norm, conv1, group_norm, conv2, residual_add.

    What comes after conv1 (its bias, the embedding) goes into norm2, which adds it while it reads;
    dropout comes out of norm2; the biases of conv2 and of the shortcut convolution go into the
    residual sum. norm1 hands its input on to the shortcut, so that both gradients of the input are
    written by one kernel.

    Args:
        block: With the layers norm1, conv1, norm2, dropout and conv2, none of which is called.
        x: (N, C1, H, W).
        skip: (N, C2, H, W) from the way down. None: C2 is 0.
        added: (N, C_out) or (C_out,) bias of conv1 and embedding. None: 0.
        shortcut: The 1x1 convolution around the block. None: the input itself.
        divisor: What the sum of branch and shortcut is divided by.

    Returns:
        (N, C_out, H, W).
    """
    norm1, norm2, dropout = block.norm1, block.norm2, block.dropout
    if skip is not None and shortcut is None:
        x, skip = torch.cat([x, skip], dim=1), None
    normed, x, skip = group_norm(
        x, norm1.weight, norm1.bias, norm1.num_groups, norm1.eps, skip=skip
    )
    hidden = group_norm(
        conv2d(normed, block.conv1, None),
        norm2.weight,
        norm2.bias,
        norm2.num_groups,
        norm2.eps,
        add=added,
        dropout=dropout.p if dropout.training else 0.0,
    ).y
    hidden = conv2d(hidden, block.conv2, None)
    if shortcut is None:
        return end_block(hidden, [x], block.conv2.bias, divisor)
    bias = sum_of(block.conv2.bias, shortcut.bias)
    return end_block(hidden, _convolved_shortcuts(shortcut, x, skip), bias, divisor)


def sum_of(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Their sum, None counting as 0."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


class FusedResnetBlock2D(ResnetBlock2D):
    """`ResnetBlock2D` as `fused_residual`."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        if block.time_embedding_norm != "default":
            return f"time embedding by {block.time_embedding_norm}"
        if block.upsample is not None or block.downsample is not None:
            return "resampling inside"
        if not isinstance(block.nonlinearity, nn.SiLU):
            return f"activation {type(block.nonlinearity).__name__}"
        return None if is_transparent(*_inner_layers(block)) else OBSERVED

    def forward(
        self,
        input_tensor: Tensor,
        temb: Tensor | None = None,
        *args: Any,
        skip: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The block on concat(input_tensor, skip).

        Args:
            input_tensor: (N, C1, H, W).
            temb: (N, D) embedding of time and class.
            *args: Deprecated in diffusers; take the torch path.
            skip: (N, C2, H, W) from the encoder.
            **kwargs: As `args`.

        Returns:
            (N, C_out, H, W).
        """
        if (
            args
            or kwargs
            or (temb is None) != (self.time_emb_proj is None)
            or not is_transparent(*_inner_layers(self))
        ):
            if skip is not None:
                input_tensor = torch.cat([input_tensor, skip], dim=1)
            return super().forward(input_tensor, temb, *args, **kwargs)

        return fused_residual(
            self,
            input_tensor,
            skip,
            self._added_to_conv1(temb, len(input_tensor)),
            self.conv_shortcut,
            self.output_scale_factor,
        )

    def _added_to_conv1(self, temb: Tensor | None, batch: int) -> Tensor | None:
        """(N, C) or (C,): the bias of conv1 and the embedding."""
        if temb is None:
            return self.conv1.bias
        embedding: Tensor = self.time_emb_proj(
            temb if self.skip_time_act else self.nonlinearity(temb)
        )
        added = sum_of(embedding, self.conv1.bias)
        if added is not None and len(added) != batch:  # one embedding for the whole batch
            added = added.expand(batch, -1).contiguous()
        return added


class FusedUpBlock2D(UpBlock2D):
    """`UpBlock2D` without concatenations."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        return _up_block_obstacle(block)

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        upsample_size: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """(N, C, H, W) and the skips, the last first, to (N, C_out, 2 H, 2 W)."""
        if args or kwargs or _takes_torch_path(self):
            return super().forward(
                hidden_states, res_hidden_states_tuple, temb, upsample_size, *args, **kwargs
            )
        for resnet, skip in zip(self.resnets, res_hidden_states_tuple[::-1], strict=True):
            hidden_states = _join(resnet, hidden_states, skip, temb)
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


class FusedAttnUpBlock2D(AttnUpBlock2D):
    """`AttnUpBlock2D` without concatenations."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        return _up_block_obstacle(block)

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        upsample_size: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """(N, C, H, W) and the skips, the last first, to (N, C_out, 2 H, 2 W)."""
        if args or kwargs or _takes_torch_path(self):
            return super().forward(
                hidden_states, res_hidden_states_tuple, temb, upsample_size, *args, **kwargs
            )
        skips = res_hidden_states_tuple[::-1]
        for resnet, attention, skip in zip(self.resnets, self.attentions, skips, strict=True):
            hidden_states = attention(_join(resnet, hidden_states, skip, temb))
        for upsampler in self.upsamplers or ():
            # As in diffusers, `upsample_size` has no effect in this block.
            if self.upsample_type == "resnet":
                hidden_states = upsampler(hidden_states, temb=temb)
            else:
                hidden_states = upsampler(hidden_states)
        return hidden_states


class FusedCrossAttnUpBlock2D(CrossAttnUpBlock2D):
    """`CrossAttnUpBlock2D` without concatenations."""

    @staticmethod
    def obstacle(block: Any) -> str | None:
        """Why `block` stays on the torch path; None if it need not."""
        return _up_block_obstacle(block)

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        upsample_size: Any = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(N, C, H, W), the skips, the last first, and (N, L, D) text to (N, C_out, 2 H, 2 W)."""
        conditions: dict[str, Any] = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
            "attention_mask": attention_mask,
            "encoder_attention_mask": encoder_attention_mask,
        }
        if "scale" in (cross_attention_kwargs or {}) or _takes_torch_path(self):
            return super().forward(
                hidden_states,
                res_hidden_states_tuple,
                temb,
                upsample_size=upsample_size,
                **conditions,
            )
        skips = res_hidden_states_tuple[::-1]
        for resnet, attention, skip in zip(self.resnets, self.attentions, skips, strict=True):
            hidden_states = _join(resnet, hidden_states, skip, temb)
            hidden_states = attention(hidden_states, return_dict=False, **conditions)[0]
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


def _inner_layers(block: Any) -> tuple[nn.Module | None, ...]:
    """The layers that the fused residual block does not call."""
    return (
        block.norm1,
        block.nonlinearity,
        block.conv1,
        block.norm2,
        block.dropout,
        block.conv2,
        block.conv_shortcut,
    )


def _up_block_obstacle(block: Any) -> str | None:
    if any(isinstance(resnet, FusedResnetBlock2D) for resnet in block.resnets):
        return None
    return "no fused residual block inside"


def _takes_torch_path(block: Any) -> bool:
    """Whether something is switched on that the up block of diffusers does between its layers."""
    free_u = all(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))
    # Not every up block of every supported diffusers can be checkpointed.
    return free_u or getattr(block, "gradient_checkpointing", False)


def _join(resnet: nn.Module, hidden: Tensor, skip: Tensor, temb: Tensor | None) -> Tensor:
    """The residual block on concat(hidden, skip).

    A hook on the block is to see the block's whole input, so it gets the concatenation.
    """
    if isinstance(resnet, FusedResnetBlock2D) and is_unobserved(resnet):
        result: Tensor = resnet(hidden, temb, skip=skip)
    else:
        result = resnet(torch.cat([hidden, skip], dim=1), temb)
    return result


def _convolved_shortcuts(conv: Any, x: Tensor, skip: Tensor | None) -> list[Tensor]:
    """The convolution without bias: W concat(x, skip) = W[:, :C1] x + W[:, C1:] skip."""
    if skip is None:
        return [conv2d(x, conv, None)]
    # `split`, not two slices: its backward writes the weight's gradient once.
    columns = conv.weight.split((x.shape[1], skip.shape[1]), dim=1)
    return [
        conv2d(part, conv, None, weight) for part, weight in zip((x, skip), columns, strict=True)
    ]
