"""The fused operations where Triton runs: launches, their gradients, remembered statistics.

`operations` decides what comes here and has checked it. Activations are channels_last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pecker_fast.backends.device_tables import on
from pecker_fast.kernels import channels_last, group_norm_backward, residual
from pecker_fast.kernels import geglu as geglu_kernels
from pecker_fast.kernels import group_norm as group_norm_kernels
from pecker_fast.kernels import layer_norm as layer_norm_kernels
from pecker_fast.kernels.group_norm import COEFFICIENTS, Normalisation
from pecker_fast.kernels.group_norm_backward import SUMS
from pecker_fast.nn import reference
from pecker_fast.nn.reference import GroupNormResult, LayerNormResult

__all__ = ["channel_statistics", "geglu", "group_norm", "layer_norm", "residual_add"]

_REMEMBERED = "_pecker_channel_statistics"


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None,
    add: Tensor | None,
    silu: bool,
    dropout: float,
) -> GroupNormResult:
    """`reference.group_norm` of (N, C, H, W) float32, bfloat16 or float16."""
    x = _channels_last(x)
    skip = None if skip is None else _channels_last(skip)
    function: Any = _GroupNorm
    outputs = function.apply(x, skip, weight, bias, add, groups, eps, silu, dropout)
    x = _alias(x, outputs[1])
    skip = None if skip is None else _alias(skip, outputs[2])
    return GroupNormResult(outputs[0], x, skip)


def residual_add(
    hidden: Tensor, shortcuts: list[Tensor], bias: Tensor | None, divisor: float
) -> Tensor:
    """`reference.residual_add` of (N, C, H, W) float32, bfloat16 or float16."""
    operands = [_channels_last(tensor) for tensor in (hidden, *shortcuts)]
    function: Any = _ResidualAdd
    out: Tensor
    out, partials = function.apply(bias, divisor, *operands)
    _remember(out, partials)
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, add: Tensor | None
) -> LayerNormResult:
    """`reference.layer_norm` of (N, L, C) float32, bfloat16 or float16."""
    if x.shape[-1] > layer_norm_kernels.MOST_COLUMNS:
        return reference.layer_norm(x, weight, bias, eps, add)
    function: Any = _LayerNorm
    return LayerNormResult(*function.apply(x, weight, bias, add, eps))


def geglu(product: Tensor) -> Tensor:
    """`reference.geglu` of (N, L, 2 C) float32, bfloat16 or float16."""
    function: Any = _Geglu
    result: Tensor = function.apply(product)
    return result


def channel_statistics(x: Tensor) -> Tensor:
    """Partial statistics of every channel: remembered with the tensor, else taken now.

    They are those of the tensor's present values: an in-place change makes them void, unless it
    goes around autograd's version counter (`x.data.add_(1)`).

    Args:
        x: (N, C, H, W) float32, bfloat16 or float16, channels_last.

    Returns:
        (N, chunks, 2, C) float32, as `channels_last.statistics` writes them.
    """
    state = _state(x)
    remembered = getattr(x, _REMEMBERED, None)
    if remembered is not None and remembered[0] == state and state is not None:
        partials: Tensor = remembered[1]
        return partials
    partials = _partials(x, 2)
    with on(x.device):
        channels_last.statistics(x, partials)
    _remember(x, partials)
    return partials


def _remember(x: Tensor, partials: Tensor) -> None:
    """Keep statistics with the tensor object: they live as long as it does."""
    setattr(x, _REMEMBERED, (_state(x), partials))


def _state(x: Tensor) -> tuple[int | bool, ...] | None:
    """What must not have changed for statistics of x to hold; None: that cannot be told.

    The address, since a deep copy takes attributes along. The stream and whether it is captured:
    nothing orders another stream behind the launch that took the statistics, and a graph must
    not read what was taken once, outside of it, from a buffer that each replay fills anew.
    """
    if x.is_inference():
        return None
    state: tuple[int | bool, ...] = (x._version, x.data_ptr())
    if x.is_cuda:
        stream = torch.cuda.current_stream(x.device).cuda_stream
        state += (stream, torch.cuda.is_current_stream_capturing())
    return state


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _alias(tensor: Tensor, alias: Tensor) -> Tensor:
    """The output that stands for an input, with its statistics; the input if it needs no grad."""
    if not (torch.is_grad_enabled() and tensor.requires_grad):
        return tensor
    setattr(alias, _REMEMBERED, getattr(tensor, _REMEMBERED))
    return alias


def _partials(x: Tensor, numbers: int) -> Tensor:
    """(N, chunks, numbers, C) float32, not initialized."""
    samples, channels, height, width = x.shape
    shape = (samples, channels_last.chunks_of(samples, height * width), numbers, channels)
    return torch.empty(shape, dtype=torch.float32, device=x.device)


class _GroupNorm(torch.autograd.Function):
    """y, and the inputs again: a gradient of these joins that of the norm in its last kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        add: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
        dropout: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        samples, _, height, width = x.shape
        channels = weight.shape[0]
        coefficients = x.new_empty((samples, COEFFICIENTS, channels), dtype=torch.float32)
        y = torch.empty(
            (samples, channels, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        seed = None
        if dropout > 0:  # on the device, so that a replayed graph draws anew
            seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x.device)
        norm = Normalisation(
            coefficients, weight.contiguous(), bias.contiguous(), silu, dropout, seed
        )
        x_partials = channel_statistics(x)
        skip_partials = None if skip is None else channel_statistics(skip)
        with on(x.device):
            group_norm_kernels.coefficients(
                x_partials,
                skip_partials,
                None if add is None else add.contiguous(),
                groups,
                eps,
                height * width,
                coefficients,
            )
            for source, first in _sources(x, skip):
                group_norm_kernels.apply(source, first, norm, y)
        ctx.save_for_backward(x, skip, weight, bias, coefficients, seed)
        ctx.options = (groups, silu, dropout)
        ctx.add = None if add is None else (add.shape, add.dtype)
        ctx.set_materialize_grads(False)
        return y, x, skip

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dy: Tensor | None, x_shortcut: Tensor | None, skip_shortcut: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, skip, weight, bias, coefficients, seed = ctx.saved_tensors
        groups, silu, dropout = ctx.options
        _, _, needs_weight, needs_bias, needs_add, *_ = ctx.needs_input_grad
        if dy is None:  # nothing depends on y
            return x_shortcut, skip_shortcut, *[None] * 7
        dy = _channels_last(dy)
        norm = Normalisation(
            coefficients, weight.contiguous(), bias.contiguous(), silu, dropout, seed
        )
        samples, channels, height, width = dy.shape
        partials = _partials(dy, 2)
        table = torch.empty((samples, SUMS, channels), dtype=torch.float32, device=x.device)
        grad_add = None
        if needs_add:
            shape, dtype = ctx.add
            grad_add = torch.empty(
                (samples, channels),
                dtype=dtype if len(shape) == 2 else torch.float32,
                device=x.device,
            )
        grad_weight = torch.empty_like(norm.weight) if needs_weight else None
        grad_bias = torch.empty_like(norm.bias) if needs_bias else None
        grads: list[Tensor | None] = [None, None]
        with on(x.device):
            for source, first in _sources(x, skip):
                group_norm_backward.sums(source, first, dy, norm, partials)
            group_norm_backward.combine(partials, norm, groups, height * width, table, grad_add)
            channels_last.column_sums(table, grad_bias, grad_weight)
            if grad_add is not None and len(shape) == 1:
                per_sample = grad_add[:, None]
                grad_add = torch.empty(shape, dtype=dtype, device=x.device)
                channels_last.column_sums(per_sample, grad_add, None)
            shortcuts = (x_shortcut, skip_shortcut)
            for i, (source, first) in enumerate(_sources(x, skip)):
                if ctx.needs_input_grad[i]:
                    shortcut = shortcuts[i]
                    shortcut = None if shortcut is None else _channels_last(shortcut)
                    grads[i] = grad = torch.empty_like(source)
                    group_norm_backward.apply(source, first, dy, shortcut, norm, table, grad)
        return *grads, grad_weight, grad_bias, grad_add, *[None] * 4


def _sources(x: Tensor, skip: Tensor | None) -> list[tuple[Tensor, int]]:
    """The inputs, each with its first channel in the concatenation."""
    return [(x, 0)] if skip is None else [(x, 0), (skip, x.shape[1])]


class _ResidualAdd(torch.autograd.Function):
    """The sum, and its partial statistics, which nothing is differentiated through."""

    @staticmethod
    def forward(
        ctx: Any, bias: Tensor | None, divisor: float, hidden: Tensor, *shortcuts: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(hidden)
        partials = _partials(hidden, 2)
        second = shortcuts[1] if len(shortcuts) == 2 else None
        with on(hidden.device):
            residual.residual_add(
                hidden,
                shortcuts[0],
                second,
                None if bias is None else bias.contiguous(),
                divisor,
                out,
                partials,
            )
        ctx.mark_non_differentiable(partials)
        ctx.divisor = divisor
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.dtypes = [tensor.dtype for tensor in (hidden, *shortcuts)]
        ctx.set_materialize_grads(False)
        return out, partials

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return None, None, *[None for _ in ctx.dtypes]
        needs_bias, _, *needs = ctx.needs_input_grad
        grad_bias = None
        if needs_bias:
            dout = _channels_last(dout)
            sums = _partials(dout, 1)
            grad_bias = torch.empty(dout.shape[1], dtype=ctx.bias_dtype, device=dout.device)
            with on(dout.device):
                channels_last.channel_sums(dout, sums)
                channels_last.column_sums(sums.flatten(0, 1), grad_bias, None, 1.0 / ctx.divisor)
        grad = dout if ctx.divisor == 1.0 or not any(needs) else dout / ctx.divisor
        grads = [
            grad.to(dtype) if need else None for need, dtype in zip(needs, ctx.dtypes, strict=True)
        ]
        return grad_bias, None, *grads


class _LayerNorm(torch.autograd.Function):
    """y, and the sum: a gradient of this joins that of the norm in one kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        ctx.dtypes = x.dtype, None if add is None else add.dtype
        x, weight, total = x.contiguous(), weight.contiguous(), x
        if add is not None:
            add = add.contiguous()
            total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, add.dtype))
        y = torch.empty_like(total, memory_format=torch.contiguous_format)
        numbers = layer_norm_kernels.STATISTICS
        statistics = x.new_empty((x[..., 0].numel(), numbers), dtype=torch.float32)
        with on(x.device):
            layer_norm_kernels.forward(x, add, weight, bias.contiguous(), eps, total, y, statistics)
        ctx.save_for_backward(total, weight, statistics)
        ctx.parameters = weight.dtype, bias.dtype
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, statistics = ctx.saved_tensors
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        of_parameters: list[Tensor | None] = [None, None]
        grad = other
        if dy is not None:
            total = total.contiguous()
            grad, partials = torch.empty_like(total), None
            if needs_weight or needs_bias:
                rows = layer_norm_kernels.partial_rows(total)
                partials = statistics.new_empty((rows, 2, total.shape[-1]))
                of_parameters = [
                    torch.empty(weight.shape, dtype=dtype, device=weight.device) if needed else None
                    for needed, dtype in zip(
                        (needs_weight, needs_bias), ctx.parameters, strict=True
                    )
                ]
            with on(total.device):
                layer_norm_kernels.backward(
                    total,
                    dy.contiguous(),
                    None if other is None else other.contiguous(),
                    weight,
                    statistics,
                    grad,
                    partials,
                )
                if partials is not None:
                    channels_last.column_sums(partials, of_parameters[1], of_parameters[0])
        of_x, of_add = (
            None if dtype is None or grad is None else grad.to(dtype) for dtype in ctx.dtypes
        )
        return of_x, *of_parameters, of_add, None


class _Geglu(torch.autograd.Function):
    """hidden * gelu(gate), of which the product of both is kept."""

    @staticmethod
    def forward(ctx: Any, product: Tensor) -> Tensor:
        product = product.contiguous()
        y = product.new_empty((*product.shape[:-1], product.shape[-1] // 2))
        with on(product.device):
            geglu_kernels.forward(product, y)
        ctx.save_for_backward(product)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (product,) = ctx.saved_tensors
        grad = torch.empty_like(product)
        with on(product.device):
            geglu_kernels.backward(product, dy.contiguous(), grad)
        return grad
