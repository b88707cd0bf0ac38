"""When a network's gradients are complete in its backward pass, and when their sums have arrived.

Both are computed: the backward pass runs on fake tensors, where torch counts two FLOPs for every
multiply-add of a convolution or matrix product, and the buckets are those that `GradientReducer`
lays out. A card computes so many FLOPs a second and a link moves so many bytes, both without a
pause: times are the least there can be at these rates.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from unittest import mock

import torch
from networks import Teacher
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast.distill.networks import NoisePredictor
from pecker_fast.distributed import GradientReducer, Ranks

__all__ = ["Bucket", "Passes", "buckets_of", "count_passes", "ring_bytes", "sums_arrive"]


@dataclass(frozen=True)
class Passes:
    """FLOPs of one way to call a network.

    Attributes:
        forward: a forward pass.
        through: a backward pass to its input; the network does not learn.
        backward: a backward pass in which it learns.
        complete: name of a parameter -> FLOPs of that pass until its gradient is complete.
    """

    forward: int
    through: int
    backward: int
    complete: Mapping[str, int]


@dataclass(frozen=True)
class Bucket:
    """What is sent at once, in the order of sending.

    Attributes:
        size: in bytes.
        ready: FLOPs of the backward pass until it is full.
    """

    size: int
    ready: int


def count_passes(preset: str, images: int) -> dict[str, Passes]:
    """What a generator and a score network of a preset cost, for a number of images.

    With guidance a score network sees every image twice.

    Returns:
        "generator" and "score".
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        # A copied network stays in the one mode: its parameters can have aliases.
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
        sdpa_kernel(SDPBackend.MATH),  # attention by its definition, whatever a card would choose
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy
        teacher = Teacher(preset)
        network = teacher.copy(dropout=False)
        predict = teacher.predictors("cpu")
        calls = {"generator": predict.generator, "score": predict.training}
        return {
            name: _count(network, call, images, teacher.network.sample_shape)
            for name, call in calls.items()
        }


def _count(network: nn.Module, call: NoisePredictor, images: int, shape: tuple[int, ...]) -> Passes:
    x = torch.empty(images, *shape)
    zeros = torch.zeros(images, dtype=torch.int64)
    complete: dict[str, int] = {}
    ahead, learning, through = (FlopCounterMode(display=False) for _ in range(3))
    hooks = [
        param.register_post_accumulate_grad_hook(
            lambda _, name=name: complete.update({name: learning.get_total_flops()})
        )
        for name, param in network.named_parameters()
    ]
    with ahead:
        output = call(network, x, zeros, zeros)
    with learning:
        output.backward(torch.empty_like(output))
    for hook in hooks:
        hook.remove()
    network.requires_grad_(False)
    output = call(network, x.requires_grad_(True), zeros, zeros)
    with through:
        output.backward(torch.empty_like(output))
    network.requires_grad_(True)
    network.zero_grad()
    return Passes(
        ahead.get_total_flops(), through.get_total_flops(), learning.get_total_flops(), complete
    )


def buckets_of(
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    density: float | None,
    complete: Mapping[str, int],
    *,
    as_registered: bool = False,
) -> list[Bucket]:
    """The buckets that `GradientReducer` lays out for these shapes, in the order of sending.

    Args:
        shapes: name -> shape, in the network's order.
        dtype: of the weights.
        density: of a mask that takes the same share of every parameter. None: no mask, and the
            buckets are those of DistributedDataParallel.
        complete: as of `Passes`.
        as_registered: as sent in the first step: the network's last parameters first.
    """
    params = {
        name: nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        for name, shape in shapes.items()
    }
    mask = None
    if density is not None:
        counts = {name: max(1, round(density * param.numel())) for name, param in params.items()}
        mask = mock.Mock(
            indices={
                name: torch.empty(count, dtype=torch.int32, device="meta")
                for name, count in counts.items()
            }
        )
    reducer = GradientReducer(params, mask, Ranks())
    names = {param: name for name, param in params.items()}
    found = [
        Bucket(
            # Without the number for each parameter that comes with them: 4 bytes.
            sum(part.values.nbytes for part in bucket.parts),
            max(complete[names[part.param]] for part in bucket.parts),
        )
        for bucket in reducer._buckets
    ]
    return found if as_registered else sorted(found, key=lambda bucket: bucket.ready)


def ring_bytes(payload: float, processes: int) -> float:
    """What each process sends to add up `payload` bytes over all, in a ring: 2 (N-1)/N of them.

    Half of it deals out the sums (reduce-scatter), half collects them (all-gather); there is no way
    to send less (Patarasuk and Yuan, 2009).
    """
    return 2 * (processes - 1) / processes * payload


def sums_arrive(
    buckets: list[Bucket], processes: int, bytes_per_s: float, flops_per_s: float
) -> float:
    """Seconds from the start of the backward pass until the last sum is there.

    Buckets go one after the other, each as soon as it is full and the link is free.
    """
    free = 0.0
    for bucket in buckets:
        start = max(free, bucket.ready / flops_per_s)
        free = start + ring_bytes(bucket.size, processes) / bytes_per_s
    return free
