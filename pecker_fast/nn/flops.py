"""How many FLOPs a backward pass needs under a mask, counted without computing anything.

A copy of the network on the meta device, which has shapes and no values, goes through forward and
backward with the gradients and the sliced layers that training under the mask has, while torch
counts: two FLOPs for every multiply-add of a convolution or matrix product. Normalisation,
activations and other elementwise work are not counted; attention counts as the products of its
definition (a fused kernel that computes the scores anew in its backward does one more).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn.skipping import skip_frozen_, slice_weight_gradient_

__all__ = ["BackwardFlops", "NetworkFlops", "count_flops"]


@dataclass(frozen=True)
class BackwardFlops:
    """One backward pass of one image.

    Attributes:
        input_gradients: Of the layers' inputs, down to the earliest layer that learns. Activations
            that are computed again (gradient checkpointing) are in it.
        weight_gradients: Of the weights that learn.
    """

    input_gradients: int
    weight_gradients: int

    @property
    def total(self) -> int:
        """Both."""
        return self.input_gradients + self.weight_gradients


@dataclass(frozen=True)
class NetworkFlops:
    """What the passes of a network cost for one image.

    Attributes:
        forward: A forward pass.
        through: A backward pass to the image, through a network that does not learn.
        full: A backward pass in which every parameter of the mask learns.
        masked: The same, where only salient entries learn.
    """

    forward: int
    through: int
    full: BackwardFlops
    masked: BackwardFlops

    @property
    def skipped(self) -> float:
        """The share of the full backward pass that the mask saves."""
        return 1 - self.masked.total / self.full.total if self.full.total else 0.0

    def iteration(self, masked_networks: int = 0) -> int:
        """One image's share of an iteration of score forgetting distillation.

        Args:
            masked_networks: How many of the two that learn do so under the mask: 1 is the
                generator, 2 the pseudo-score network as well.
        """
        # Forward passes: generator in both phases, pseudo-score in both, teacher in one. Through
        # to the image: teacher and pseudo-score, in the generator's phase.
        backward = masked_networks * self.masked.total + (2 - masked_networks) * self.full.total
        return 5 * self.forward + 2 * self.through + backward


def count_flops(
    network: nn.Module,
    mask: SaliencyMask,
    forward: Callable[[nn.Module, Tensor], Tensor],
    sample_shape: tuple[int, ...],
) -> NetworkFlops:
    """Count what training a network under a mask costs per image. The network is not changed.

    Seconds for any size, and no memory to speak of. Weight gradients are told from input gradients
    for the layers that `skip_frozen_` can slice; those of others (transposed or grouped
    convolutions) count as input gradients.

    Args:
        network: Any module.
        mask: Which entries may change. Parameters that are not in it are taken as frozen.
        forward: (network on the meta device, (1, *sample_shape) image there) -> output. Whatever
            else the network needs has to be on the meta device too.
        sample_shape: Of one image, e.g. (C, H, W).

    Raises:
        PeckerError: The mask does not fit, or the network does not run on the meta device.
    """
    mask.check(network)
    dtype = next(network.parameters()).dtype
    image = torch.empty(1, *sample_shape, dtype=dtype, device="meta")
    try:
        copied = _meta_copy(network)
        everything = set(mask)
        salient = {name for name, positions in mask.indices.items() if len(positions)}
        full = _count_backward(copied, forward, image, everything, None)
        masked = _count_backward(copied, forward, image, salient, mask)
        copied.requires_grad_(False)
        ahead, through = _count(copied, forward, image.requires_grad_(True))
    except Exception as error:  # anything: the network is the user's
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise PeckerError(
            f"the FLOPs of {type(network).__name__} cannot be counted: it does not run on the meta "
            f"device, where tensors have a shape and no values ({first_line})"
        ) from error
    return NetworkFlops(ahead, through, full, masked)


def _meta_copy(network: nn.Module) -> nn.Module:
    """A copy with the network's structure and shapes, on the meta device and in train mode."""
    # What deepcopy finds in its memo it takes as copied already.
    memo: dict[int, object] = {
        id(param): nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=False)
        for param in network.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    return copy.deepcopy(network, memo).train()


def _count_backward(
    network: nn.Module,
    forward: Callable[[nn.Module, Tensor], Tensor],
    image: Tensor,
    learning: Set[str],
    mask: SaliencyMask | None,
) -> BackwardFlops:
    """A backward pass in which the named parameters learn, sliced under a mask."""
    for name, param in network.named_parameters():
        param.requires_grad_(name in learning)
    skip_frozen_(network, mask)
    total = _count(network, forward, image)[1]
    # The same graph, with weight gradients of no row at all.
    skip_frozen_(network, None)
    for module in network.modules():
        slice_weight_gradient_(module, torch.empty(0, dtype=torch.int64, device="meta"))
    input_gradients = _count(network, forward, image)[1]
    return BackwardFlops(input_gradients, total - input_gradients)


def _count(
    network: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor], image: Tensor
) -> tuple[int, int]:
    """FLOPs of a forward pass and of the backward pass behind it."""
    ahead, back = FlopCounterMode(display=False), FlopCounterMode(display=False)
    # Attention by its definition: which fused kernel another device would choose is unknown here.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        with ahead:
            output = forward(network, image)
        with back:
            if output.requires_grad:
                output.backward(torch.empty_like(output))  # type: ignore[no-untyped-call]
    return ahead.get_total_flops(), back.get_total_flops()
