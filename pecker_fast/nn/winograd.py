"""3x3 convolutions on a CPU by Winograd's algorithm, two to three times as fast as torch's.

`csrc/cpu/winograd.h` has the maths. What fits (`fits`): float32, 3x3, stride 1, padding 1, one
group, input channels in steps of 8 and output channels in steps of 16. Results differ from torch's
by rounding, about twice that of a direct convolution, and are the same with any instruction set and
any number of threads. Activations are channels_last.

Off where the processor has no AVX2, the compiled module is not built, or PECKER_FAST_WINOGRAD=0.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from pecker_fast import backends

__all__ = [
    "SWITCH",
    "WinogradConv2d",
    "convolution",
    "drop_winograd_",
    "fits",
    "running_winograd",
    "unavailable",
    "use_winograd_",
]

SWITCH = "PECKER_FAST_WINOGRAD"
"""Environment variable; 0 leaves every convolution to torch."""

_OUTPUTS, _CHANNELS = 16, 8  # steps in which the kernels take channels


class WinogradConv2d(nn.Conv2d):
    """A convolution that runs Winograd's algorithm where it fits, in channels_last.

    It has the parameters and the state dict of the convolution that it was, and becomes one again
    by `drop_winograd_`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_fit_for(input, weight):
            return convolution(input, weight, bias)
        input = self.in_layout(input, weight)
        output: Tensor = super()._conv_forward(input, weight, bias)
        return output

    def is_fit_for(self, input: Tensor, weight: Tensor) -> bool:
        """Whether a call with this input and weight runs the algorithm."""
        return self.has_fitting_geometry(self) and fits(input, weight)

    @staticmethod
    def in_layout(input: Tensor, weight: Tensor) -> Tensor:
        """The input in channels_last, as what comes before and after it, where the kernels run."""
        if _is_float32_on_cpu(input, weight):
            return input.contiguous(memory_format=torch.channels_last)
        return input

    @staticmethod
    def has_fitting_geometry(conv: nn.Conv2d) -> bool:
        """Whether kernel, stride, padding, dilation and groups are those of the algorithm."""
        return (
            conv.kernel_size == (3, 3)
            and conv.stride == (1, 1)
            and conv.padding == (1, 1)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
        )


def use_winograd_(network: nn.Module) -> int:
    """Let the convolutions of a network run Winograd's algorithm where it fits. In place.

    All of them bring activations to channels_last. Only `nn.Conv2d` itself is switched, not its
    subclasses. Twice is harmless.

    Returns:
        The number of convolutions that fit by their shape; without any, nothing is switched.
    """
    convolutions = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, WinogradConv2d)
    ]
    fitting = sum(
        WinogradConv2d.has_fitting_geometry(conv) and _fits_channels(conv.weight)
        for conv in convolutions
    )
    if fitting:
        for conv in convolutions:
            conv.__class__ = WinogradConv2d
    return fitting


def drop_winograd_(network: nn.Module) -> None:
    """Undo `use_winograd_`. In place."""
    for module in network.modules():
        if type(module) is WinogradConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


@contextmanager
def running_winograd(network: nn.Module) -> Iterator[None]:
    """`use_winograd_` for a while, where the network is on a CPU and the algorithm runs there."""
    first = next(network.parameters(), None)
    switches = first is not None and first.device.type == "cpu" and unavailable() is None
    before = [module for module in network.modules() if type(module) is nn.Conv2d]
    if switches:
        use_winograd_(network)
    try:
        yield
    finally:
        for module in before:
            module.__class__ = nn.Conv2d


def unavailable() -> str | None:
    """Why convolutions cannot run here by Winograd's algorithm; None: they can."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if (reason := backends.available()["cpu"]) is not None:
        return reason
    return None if _instruction_set() else "Winograd's convolutions need a CPU with AVX2"


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` takes these; the convolution's geometry is the caller's to look at.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3).
    """
    return (
        _is_float32_on_cpu(x, weight)
        and x.shape[1] == weight.shape[1]
        and x.numel() > 0
        and _fits_channels(weight)
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap, jvp: no rules of ours
    )


def _is_float32_on_cpu(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # a compiler has convolutions of its own
        and x.dim() == 4
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and _instruction_set() is not None
    )


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None = None
) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` of what `fits`.

    Gradients of gradients are torch's.

    Args:
        x: (N, C, H, W) float32.
        weight: (O, C, 3, 3) float32.
        bias: (O,) float32, or None.
        rows: (R,) int64, the output channels whose weight gradient is wanted; those of others are
            0. None: all.

    Returns:
        (N, O, H, W) float32, channels_last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if not torch.is_grad_enabled():
        output: Tensor = torch.ops.pecker_fast.winograd_convolution(x, weight, bias)
        return output
    output = _Convolution.apply(x, weight, bias, rows)  # type: ignore[no-untyped-call]
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows)
        output: Tensor = torch.ops.pecker_fast.winograd_convolution(x, weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        # With gradients on, this pass is to be differentiated, which only torch's can be.
        ours = not torch.is_grad_enabled()
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if needs_x:
            if ours and weight.shape[1] % _OUTPUTS == 0:
                grad_x = torch.ops.pecker_fast.winograd_input_gradient(grad, weight)
            else:
                grad_x = _torchs_gradients(grad, x, weight, 0)
        if needs_weight:
            gradient: Any = torch.ops.pecker_fast.winograd_weight_gradient
            if not ours:
                gradient = functools.partial(_torchs_gradients, which=1)
            if rows is None:
                grad_weight = gradient(grad, x, weight)
            else:
                grad_weight = torch.zeros_like(weight)
                if len(rows):
                    grad_weight = _of_rows(gradient, grad, x, grad_weight, rows)
        grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None


def _of_rows(gradient: Any, grad: Tensor, x: Tensor, zeros: Tensor, rows: Tensor) -> Tensor:
    """The weight gradient of some rows among zeros."""
    # The last row again, up to the step in which the kernels take them.
    padded = torch.cat([rows, rows[-1:].expand(-len(rows) % _OUTPUTS)])
    part = grad.permute(0, 2, 3, 1).index_select(3, padded).permute(0, 3, 1, 2)
    like = zeros.new_empty((len(padded), *zeros.shape[1:]))
    return zeros.index_copy(0, rows, gradient(part, x, like)[: len(rows)])


def _torchs_gradients(grad: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    wanted = [which == 0, which == 1, False]  # of the input, of the weight, of a bias
    gradients: list[Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
    )
    return gradients[which]


def _fits_channels(weight: Tensor) -> bool:
    return weight.shape[0] % _OUTPUTS == 0 and weight.shape[1] % _CHANNELS == 0


@functools.cache
def _instruction_set() -> str | None:
    """The best one that the kernels have; PECKER_FAST_ISA picks another. None: they do not run."""
    if backends.available()["cpu"] is not None:
        return None
    from pecker_fast import _C
    from pecker_fast.backends.cpu import instruction_set

    chosen = instruction_set()
    return chosen if chosen in _C.winograd_instruction_sets() else None


# ---- operators of torch, so that whatever records or counts operations sees them


def _tile(height: int, width: int) -> int:
    """The side of a tile of outputs: 2 where it takes no more multiplications than 4.

    Its error is a third. Images of up to 4x4 pixels have so few tiles that the weights' transform
    is most of the work, and that is half.
    """
    by_4, by_2 = (-(-height // tile) * -(-width // tile) * (tile + 2) ** 2 for tile in (4, 2))
    return 2 if by_2 <= by_4 or height * width <= 16 else 4


def _empty_image(like: Tensor, channels: int) -> Tensor:
    images, _, height, width = like.shape
    return torch.empty(
        (images, channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _launch(
    x: Tensor, weight: Tensor, strides: list[int], first: int, bias: Tensor | None, out: Tensor
) -> Tensor:
    """A convolution of x with the weight seen from its element `first` with these strides."""
    from pecker_fast import _C

    images, channels, height, width = x.shape
    _C.winograd_convolution(
        x.data_ptr(),
        weight.data_ptr() + first * weight.element_size(),
        strides,
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        [images, height, width, channels, out.shape[1]],
        _tile(height, width),
        torch.get_num_threads(),
        str(_instruction_set()),
    )
    return out


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    out = _empty_image(x, weight.shape[0])
    return _launch(x, weight, list(weight.stride()), 0, bias, out)


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    output, channel, row, column = weight.stride()
    turned = [channel, output, -row, -column]
    out = _empty_image(grad, weight.shape[1])
    return _launch(grad, weight, turned, 2 * row + 2 * column, None, out)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """In the layout of `weight`, of which nothing else counts."""
    from pecker_fast import _C

    images, channels, height, width = x.shape
    out = torch.empty_like(weight)
    _C.winograd_weight_gradient(
        x.data_ptr(),
        grad.data_ptr(),
        out.data_ptr(),
        list(out.stride()),
        [images, height, width, channels, len(weight)],
        _tile(height, width),
        torch.get_num_threads(),
        str(_instruction_set()),
    )
    return out


def _flops(image: Any, weight: Any) -> int:
    """Of the convolution by its definition, whatever the algorithm, as torch counts."""
    outputs, channels, *taps = weight
    images, _, height, width = image
    return int(2 * images * height * width * outputs * channels * taps[0] * taps[1])


_torch_library: Any = torch.library  # untyped in torch
_library = _torch_library.Library("pecker_fast", "FRAGMENT")
for _name, _schema, _work, _fake, _count in (
    (
        "winograd_convolution",
        "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
        _convolution,
        lambda x, weight, bias: _empty_image(x, weight.shape[0]),
        lambda x, weight, bias, *args, **kwargs: _flops(x, weight),
    ),
    (
        "winograd_input_gradient",
        "(Tensor grad, Tensor weight) -> Tensor",
        _input_gradient,
        lambda grad, weight: _empty_image(grad, weight.shape[1]),
        lambda grad, weight, *args, **kwargs: _flops(grad, weight),
    ),
    (
        "winograd_weight_gradient",
        "(Tensor grad, Tensor x, Tensor weight) -> Tensor",
        _weight_gradient,
        lambda grad, x, weight: torch.empty_like(weight),
        lambda grad, x, weight, *args, **kwargs: _flops(x, weight),
    ),
):
    _library.define(_name + _schema)
    _library.impl(_name, _work, "CPU")
    _torch_library.register_fake(f"pecker_fast::{_name}", _fake, lib=_library)
    register_flop_formula(getattr(torch.ops.pecker_fast, _name))(_count)
