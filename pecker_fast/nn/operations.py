"""The fused operations of a U-Net block: Triton kernels where they run, else the reference.

The signatures and results are those of `reference`, which documents them. The kernels take (N, C,
H, W) activations in float32, bfloat16 or float16, bring them to channels_last and compute in
float32; everything else is the reference's. Parameters may be of another of these dtypes.

A tensor that `residual_add` or `group_norm` has seen carries the statistics of its channels, so a
norm after a residual block, and of the same skip a second time, reads it once less.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pecker_fast import backends
from pecker_fast.errors import PeckerError
from pecker_fast.nn import reference
from pecker_fast.nn.reference import GroupNormResult, LayerNormResult

__all__ = [
    "GroupNormResult", "LayerNormResult", "geglu", "group_norm", "layer_norm", "residual_add",
    "runs_triton", "unavailable",
]  # fmt: skip

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable(device: torch.device | str) -> str | None:
    """Why the fused kernels cannot run on tensors on `device`; None: they can."""
    return _unavailable(torch.device(device).type)


@functools.cache  # asked at every call of an operation
def _unavailable(device_type: str) -> str | None:
    if device_type == "cpu" and "triton" not in backends.on_host():
        return "the fused kernels run on CUDA devices (TRITON_INTERPRET=1: on the CPU, for tests)"
    if device_type not in ("cpu", "cuda"):
        return f"the fused kernels run on CUDA devices, not on {device_type!r}"
    return backends.available()["triton"]


def runs_triton(x: Tensor) -> bool:
    """Whether the operations take their kernels for these activations, or the reference."""
    return (
        x.dim() == 4
        and x.dtype in _DTYPES
        and x.numel() > 0
        and _unavailable(x.device.type) is None
    )


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
    """`reference.group_norm` in two or three passes over the activations.

    Dropout draws a seed from torch's global generator of the device and the elements' numbers from
    the seed: reproducible after `torch.manual_seed`, but not the mask that torch would draw.

    Raises:
        PeckerError: Sizes that do not belong together.
    """
    others = [tensor for tensor in (skip, weight, bias, add) if tensor is not None]
    if not (runs_triton(x) and _all_on(x.device, others)):
        return reference.group_norm(
            x, weight, bias, groups, eps, skip=skip, add=add, silu=silu, dropout=dropout
        )
    _check_group_norm(x, weight, bias, groups, skip, add, dropout)
    from pecker_fast.nn import fused  # needs Triton

    return fused.group_norm(x, weight, bias, groups, eps, skip, add, silu, dropout)


def residual_add(
    hidden: Tensor,
    shortcuts: Sequence[Tensor],
    bias: Tensor | None = None,
    divisor: float = 1.0,
) -> Tensor:
    """`reference.residual_add` in one pass, which also takes the result's channel statistics.

    Raises:
        PeckerError: Sizes that do not belong together.
    """
    others = [*shortcuts, *([] if bias is None else [bias])]
    if not (runs_triton(hidden) and _all_on(hidden.device, others) and len(shortcuts) in (1, 2)):
        return reference.residual_add(hidden, shortcuts, bias, divisor)
    for shortcut in shortcuts:
        _check_shape("residual_add", "shortcut", shortcut, hidden.shape)
    if bias is not None:
        _check_shape("residual_add", "bias", bias, hidden.shape[1:2])
    from pecker_fast.nn import fused  # needs Triton

    return fused.residual_add(hidden, list(shortcuts), bias, divisor)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, add: Tensor | None = None
) -> LayerNormResult:
    """`reference.layer_norm` in one pass, and its backward in another, of (N, L, C).

    Raises:
        PeckerError: Sizes that do not belong together.
    """
    others = [tensor for tensor in (weight, bias, add) if tensor is not None]
    if x.dim() != 3 or not (runs_triton(x[None]) and _all_on(x.device, others)):
        return reference.layer_norm(x, weight, bias, eps, add)
    _check_shape("layer_norm", "weight", weight, x.shape[2:])
    _check_shape("layer_norm", "bias", bias, x.shape[2:])
    if add is not None:
        _check_shape("layer_norm", "add", add, x.shape)
    from pecker_fast.nn import fused  # needs Triton

    return fused.layer_norm(x, weight, bias, eps, add)


def geglu(product: Tensor) -> Tensor:
    """`reference.geglu` in one pass, which keeps the product alone for the backward pass."""
    if product.dim() != 3 or not runs_triton(product[None]):
        return reference.geglu(product)
    from pecker_fast.nn import fused  # needs Triton

    return fused.geglu(product)


def _all_on(device: torch.device, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can read them all."""
    return all(tensor.device == device and tensor.dtype in _DTYPES for tensor in tensors)


def _check_group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    skip: Tensor | None,
    add: Tensor | None,
    dropout: float,
) -> None:
    """The kernels read by address: what does not fit must not reach them."""
    samples, channels, height, width = x.shape
    if skip is not None:
        skip_channels = skip.shape[1] if skip.dim() == 4 else 0
        _check_shape("group_norm", "skip", skip, (samples, skip_channels, height, width))
        channels += skip_channels
    _check_shape("group_norm", "weight", weight, (channels,))
    _check_shape("group_norm", "bias", bias, (channels,))
    if add is not None:
        expected = (channels,) if add.dim() == 1 else (samples, channels)
        _check_shape("group_norm", "add", add, expected)
    if groups < 1 or channels % groups:
        raise PeckerError(
            f"group_norm: {channels} channels cannot be {groups} groups of the same size:"
            " use a divisor of the channels"
        )
    if not 0.0 <= dropout <= 1.0:
        raise PeckerError(f"group_norm: dropout must be a probability, got {dropout}")


def _check_shape(operation: str, name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise PeckerError(
            f"{operation}: {name} must have shape {tuple(expected)}, got {tuple(tensor.shape)}"
        )
