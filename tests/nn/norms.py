"""A call of group_norm as a test case, and the oracle: plain torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def assert_near(actual: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert (actual is None) == (expected is None)
    if actual is not None and expected is not None:
        error = actual.double() - expected
        assert error.abs().max() <= tolerance * expected.abs().max()
        assert error.norm() <= tolerance * expected.norm()


@dataclass(frozen=True)
class Case:
    """One call of group_norm."""

    channels: int
    groups: int
    size: tuple[int, int, int]  # N, H, W
    skip_channels: int = 0
    add: str | None = None  # "channel": (C,), "sample": (N, C)
    silu: bool = True
    shortcuts: bool = False  # the inputs that are returned get gradients too
    mean: float = 1.0
    memory_format: torch.memory_format = torch.channels_last

    def inputs(self, dtype: torch.dtype, parameter_dtype: torch.dtype, device: torch.device):
        """x, skip, weight, bias, add: leaves that require grad, or None."""
        samples, height, width = self.size
        total = self.channels + self.skip_channels

        def leaf(shape, dtype, scale=1.0, mean=0.0):
            values = torch.randn(shape, device=device) * scale + mean
            if values.dim() == 4:
                values = values.contiguous(memory_format=self.memory_format)
            return values.to(dtype).requires_grad_()

        x = leaf((samples, self.channels, height, width), dtype, 1.0, self.mean)
        skip = None
        if self.skip_channels:
            skip = leaf((samples, self.skip_channels, height, width), dtype, 2.0, -self.mean)
        weight, bias = leaf(total, parameter_dtype, 0.5, 1.0), leaf(total, parameter_dtype)
        shape = {None: None, "channel": (total,), "sample": (samples, total)}[self.add]
        return x, skip, weight, bias, None if shape is None else leaf(shape, parameter_dtype)


def gradients(y: Tensor, returned, dy: Tensor, shortcut_grads, leaves) -> list[Tensor | None]:
    """Of sum(y * dy) and, where the inputs are used again, of sum(input * its gradient)."""
    loss = (y * dy.to(y.dtype)).sum()
    for tensor, grad in zip(returned, shortcut_grads, strict=True):
        if tensor is not None and grad is not None:
            loss = loss + (tensor * grad.to(tensor.dtype)).sum()
    needed = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(loss, needed))
    return [None if leaf is None or not leaf.requires_grad else next(found) for leaf in leaves]


def oracle(leaves, groups: int, silu: bool, kept: Tensor | None = None, dropout: float = 0.0):
    """y and the inputs as float64 leaves: no line of the reference, none of the kernels."""
    wide = [
        leaf if leaf is None else leaf.detach().double().requires_grad_(leaf.requires_grad)
        for leaf in leaves
    ]
    x, skip, weight, bias, add = wide
    value = x if skip is None else torch.cat([x, skip], dim=1)
    if add is not None:
        value = value + (add[:, :, None, None] if add.dim() == 2 else add[None, :, None, None])
    # Written out: torch 2.13's own crashes on a CPU where only the weight of a channels_last norm
    # needs a gradient.
    grouped = value.reshape(len(value), groups, -1)
    deviation = grouped - grouped.mean(dim=2, keepdim=True)
    variance = deviation.square().mean(dim=2, keepdim=True)
    y = (deviation / (variance + 1e-5).sqrt()).view(value.shape)
    y = y * weight[:, None, None] + bias[:, None, None]
    y = y * y.sigmoid() if silu else y
    return (y if kept is None else y * kept / (1 - dropout)), wide
