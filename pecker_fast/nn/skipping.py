"""Weight gradients of salient rows only, for convolutions and linear layers.

Where a mask leaves whole rows of a weight frozen (slices of dimension 0, the output channels), only
the gradient of the other rows is needed:

    grad_weight[rows] = grad_output[rows]^T input     and 0 in all other rows
    grad_input        = weight^T grad_output          as ever, with all rows
    grad_bias         = sum of grad_output            as ever

The gradient has the weight's full shape, so whatever reads it (hooks, clipping, DDP, an optimizer)
sees an ordinary one. A weight without any salient entry needs no gradient at all: that is what
`requires_grad_(False)` is for, and torch then also runs no backward below the earliest salient
layer. What it does on a CPU even so is the weight gradient of a convolution whose bias learns, half
of the layer's backward pass; a sliced convolution makes the bias gradient by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn import winograd
from pecker_fast.nn.winograd import WinogradConv2d

__all__ = [
    "ROWS_ON_CUDA",
    "SLICE_BELOW",
    "SLICE_BELOW_ON_CUDA",
    "SlicedConv2d",
    "SlicedLayer",
    "SlicedLinear",
    "SlicedWinogradConv2d",
    "conv2d",
    "linear",
    "skip_frozen_",
    "slice_weight_gradient_",
]

SLICE_BELOW = 0.75
"""Share of salient rows from which on a layer is left alone. What can be saved is then a quarter of
one product or less, against a copy of the rows of grad_output and a scatter of the result; and
matrix products work in tiles of 64 to 128 rows, so that the last quarter often saves nothing."""

SLICE_BELOW_ON_CUDA = 0.25
"""The same there, of rows rounded up: the copy and the scatter cost bandwidth that the product of a
dense layer does not wait for."""

ROWS_ON_CUDA = 32
"""Tensor cores take rows in multiples of 8 (16 bytes of bf16); others go to slower kernels."""


class SlicedLayer(NamedTuple):
    """A layer whose weight gradient is computed for some rows only.

    Attributes:
        name: Of the module in its network.
        salient_rows: Rows of the weight that hold a salient entry.
        rows: All of them.
    """

    name: str
    salient_rows: int
    rows: int


class SlicedConv2d(nn.Conv2d):
    """A convolution whose weight gradient is computed for its salient rows only.

    Attributes:
        salient_rows: (R,) int64, increasing. Neither a parameter nor a buffer: no state-dict key.
        product_rows: (R',) int64, the same and behind them others, whose gradient is thrown away.
    """

    salient_rows: Tensor
    product_rows: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The convolution."""
        return conv2d(input, self, self.bias)


class SlicedWinogradConv2d(SlicedConv2d, WinogradConv2d):
    """The same of a convolution that runs Winograd's algorithm."""


class SlicedLinear(nn.Linear):
    """A linear layer whose weight gradient is computed for its salient rows only.

    Attributes:
        salient_rows: (R,) int64, increasing. Neither a parameter nor a buffer: no state-dict key.
        product_rows: (R',) int64, the same and behind them others, whose gradient is thrown away.
    """

    salient_rows: Tensor
    product_rows: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The linear map."""
        return linear(input, self, self.bias)


# What a layer becomes, by what it is.
_SLICED: dict[type[nn.Module], Any] = {
    nn.Conv2d: SlicedConv2d,
    WinogradConv2d: SlicedWinogradConv2d,
    nn.Linear: SlicedLinear,
}
_PLAIN: dict[type[nn.Module], Any] = {sliced: plain for plain, sliced in _SLICED.items()}


def skip_frozen_(network: nn.Module, mask: SaliencyMask | None) -> tuple[SlicedLayer, ...]:
    """Compute weight gradients of a network only in rows that hold a salient entry. In place.

    Exact: salient entries have the gradient they would have had, up to the order in which its terms
    are added; entries in rows without a salient entry have gradient 0. Outputs, input gradients,
    bias gradients, names and the state dict stay as they are. The layers keep a copy of the row
    numbers of this mask: call again after the mask has changed, with None before anything that
    needs the gradient of frozen entries (saliency scores) and to undo it.

    Only `nn.Conv2d`, `WinogradConv2d` and `nn.Linear` are sliced, not other subclasses (which may
    compute something else), nor convolutions with groups, a padding mode or a padding by name.

    Args:
        network: Any module; its sliced layers become `SlicedConv2d` and `SlicedLinear`.
        mask: Which entries may change. None = all, nothing is sliced.

    Returns:
        The sliced layers. Layers of which a share of `SLICE_BELOW` of the rows or more is salient,
        or no row at all, are left alone, but on a CPU for convolutions of which the bias alone
        learns. On CUDA the share is `SLICE_BELOW_ON_CUDA`, of rows in multiples of `ROWS_ON_CUDA`.

    Raises:
        PeckerError: The mask does not fit the network, which is then left as it was.
    """
    if mask is not None:
        mask.check(network)
    for module in network.modules():
        if isinstance(module, (SlicedConv2d, SlicedLinear)):
            _undo_(module)
    sliced: list[SlicedLayer] = []
    if mask is None:
        return ()
    learning = {name for name, positions in mask.indices.items() if len(positions)}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        weight_name = f"{prefix}weight"
        if not _can_be_sliced(module) or weight_name not in mask:
            continue
        count = mask.shapes[weight_name][0]
        rows = _salient_rows(mask, weight_name)
        on_cuda = _is_on_cuda(module)
        multiple, below = (ROWS_ON_CUDA, SLICE_BELOW_ON_CUDA) if on_cuda else (1, SLICE_BELOW)
        # On a CPU torch makes the weight's gradient whenever it makes the bias's.
        for_its_bias = isinstance(module, nn.Conv2d) and f"{prefix}bias" in learning and not on_cuda
        computed = -(-len(rows) // multiple) * multiple
        if computed < below * count and (computed or for_its_bias):
            slice_weight_gradient_(module, rows, multiple)
            sliced.append(SlicedLayer(name, len(rows), count))
    return tuple(sliced)


def slice_weight_gradient_(module: nn.Module, rows: Tensor, multiple: int = 1) -> bool:
    """Restrict the weight gradient of one layer to some rows. In place.

    Args:
        module: A layer as `skip_frozen_` slices; any other is left alone.
        rows: (R,) int64 positions in dimension 0 of the weight, increasing. R = 0 is allowed.
        multiple: Compute the gradient of so many rows or a multiple of it, all where there are
            fewer; those of rows that were not asked for are 0 all the same.

    Returns:
        Whether the layer is sliced now.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or not _can_be_sliced(module):
        return False
    # A plain attribute: `Module.to` does not move it, so it is brought to the input's device.
    device = module.weight.device
    module.salient_rows = rows.to(device)
    module.product_rows = _filled_up(rows, len(module.weight), multiple).to(device)
    module.__class__ = _SLICED[type(module)]
    return True


def conv2d(
    x: Tensor, module: nn.Conv2d, bias: Tensor | None, weight: Tensor | None = None
) -> Tensor:
    """What `module(x)` computes, but with the bias and weight given: for fused blocks.

    Args:
        x: (N, C_in, H, W) activations.
        module: The convolution, sliced or ordinary, which is not called.
        bias: (C_out,), usually `module.bias`. None: no bias is added.
        weight: (C_out, C, kh, kw), e.g. some columns of the module's weight. None: all of it.

    Returns:
        (N, C_out, H', W') in the dtype of `F.conv2d`, under autocast too.
    """
    weight = module.weight if weight is None else weight
    output: Tensor
    if isinstance(module, SlicedConv2d) and x.dim() == 4 and torch.is_grad_enabled():
        if weight.requires_grad:
            if isinstance(module, WinogradConv2d) and module.is_fit_for(x, weight):
                return winograd.convolution(x, weight, bias, _rows_beside(x, module)[0])
            if isinstance(module, WinogradConv2d):
                x = module.in_layout(x, weight)
            output = _SlicedConv2d.apply(  # type: ignore[no-untyped-call]
                *_autocast(x, weight, bias),
                *_rows_beside(x, module),
                module.stride,
                module.padding,
                module.dilation,
            )
            return output
        if bias is not None and bias.requires_grad:
            output = module._conv_forward(x, weight, bias.detach())
            output = _BiasGradient.apply(output, bias)  # type: ignore[no-untyped-call]
            return output
    output = module._conv_forward(x, weight, bias)
    return output


def linear(
    x: Tensor, module: nn.Linear, bias: Tensor | None, weight: Tensor | None = None
) -> Tensor:
    """What `module(x)` computes, but with the bias and weight given: for fused blocks.

    Args:
        x: (..., C_in) activations.
        module: The linear layer, sliced or ordinary, which is not called.
        bias: (C_out,), usually `module.bias`. None: no bias is added.
        weight: (C_out, C), e.g. some columns of the module's weight. None: all of it.

    Returns:
        (..., C_out) in the dtype of `F.linear`, under autocast too.
    """
    weight = module.weight if weight is None else weight
    if isinstance(module, SlicedLinear) and torch.is_grad_enabled() and weight.requires_grad:
        result: Tensor = _SlicedLinear.apply(  # type: ignore[no-untyped-call]
            *_autocast(x, weight, bias), *_rows_beside(x, module)
        )
        return result
    return F.linear(x, weight, bias)


class _SlicedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        product_rows: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, product_rows)
        ctx.geometry = (stride, padding, dilation)
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, product_rows = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]

        def gradient(which: int, grad: Tensor, weight: Tensor) -> Tensor:
            wanted = [which == 0, which == 1, False]  # of the input, of the weight, of a bias
            gradients: list[Tensor] = torch.ops.aten.convolution_backward(
                grad, x, weight, None, *ctx.geometry, False, [0, 0], 1, wanted
            )
            return gradients[which]

        grad_x = gradient(0, grad, weight) if needs_x else None
        grad_weight = None
        if needs_weight:
            grad_weight = torch.zeros_like(weight)
            if len(rows):
                # Of this weight only the shape and the memory format count: any rows will do.
                like = weight[: len(product_rows)]
                part = gradient(1, _channels(grad, product_rows), like)
                grad_weight.index_copy_(0, rows, part[: len(rows)])
        grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


class _BiasGradient(torch.autograd.Function):
    """Passes on the output of a convolution, and makes the gradient of its bias."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, bias: Tensor) -> Tensor:
        # As if it were changed in place: only so may what follows really do that.
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.sum((0, 2, 3))


class _SlicedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        product_rows: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, product_rows)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, product_rows = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad @ weight if needs_x else None
        grad = grad.reshape(-1, grad.shape[-1])
        grad_weight = None
        if needs_weight:
            part = grad.index_select(1, product_rows).T @ x.reshape(-1, x.shape[-1])
            grad_weight = torch.zeros_like(weight).index_copy_(0, rows, part[: len(rows)])
        grad_bias = grad.sum(0) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def _channels(x: Tensor, channels: Tensor) -> Tensor:
    """Some channels of an (N, C, H, W) tensor, in its memory format."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(3, channels).permute(0, 3, 1, 2)
    return x.index_select(1, channels)


def _rows_beside(x: Tensor, module: SlicedConv2d | SlicedLinear) -> tuple[Tensor, Tensor]:
    """The module's salient rows and those of the product, on the device of its input."""
    if module.salient_rows.device != x.device:
        module.salient_rows = module.salient_rows.to(x.device)
        module.product_rows = module.product_rows.to(x.device)
    return module.salient_rows, module.product_rows


def _filled_up(rows: Tensor, count: int, multiple: int) -> Tensor:
    """Rows, and behind them the first others of 0 .. count-1 that make their number a multiple."""
    missing = min(-len(rows) % multiple, count - len(rows))
    if not missing:
        return rows
    others = torch.ones(count, dtype=torch.bool, device=rows.device).index_fill_(0, rows, False)
    return torch.cat([rows, others.nonzero().flatten()[:missing]])


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Operands in the dtype that autocast, where it is on, gives to a convolution or product.

    Inside an autograd function the casts would leave no trace in the graph, and the gradients would
    come back in the wrong dtype.
    """
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in tensors
    )


def _is_on_cuda(module: nn.Module) -> bool:
    return next(module.parameters()).is_cuda


def _can_be_sliced(module: nn.Module) -> bool:
    if type(module) in (nn.Conv2d, WinogradConv2d):
        assert isinstance(module, nn.Conv2d)
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and module.groups == 1
    return type(module) is nn.Linear


def _salient_rows(mask: SaliencyMask, name: str) -> Tensor:
    """(R,) int64, the rows of a parameter that hold a salient entry."""
    positions, shape = mask.indices[name], mask.shapes[name]
    # Positions are sorted, and so are their rows.
    rows: Tensor = torch.unique_consecutive(positions // max(1, shape[1:].numel()))
    return rows.long()


def _undo_(module: SlicedConv2d | SlicedLinear) -> None:
    del module.salient_rows, module.product_rows
    module.__class__ = _PLAIN[type(module)]
