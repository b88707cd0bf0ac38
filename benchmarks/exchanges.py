"""What communication.py measures: ways to sum gradients, and, in trainer_exchanges.py, iterations.

`work` is what each process does. Every step is checked before it is counted and timed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from trainer_exchanges import ITERATIONS, iteration
from wire_meter import Meter, Options, Outcome

from pecker_fast import MaskedAdamW, SaliencyMask
from pecker_fast.distributed import GradientReducer, Ranks
from pecker_fast.models.ddpm import DDPMUNet

__all__ = ["EXCHANGES", "Exchange", "work"]

_PORT = 29_617
_WARM_UP = 2  # DistributedDataParallel lays out its buckets anew in the second step
_CLASSES = 10


@dataclass(frozen=True)
class Exchange:
    """A way to sum gradients over processes.

    Attributes:
        name: of the row.
        density: of a random mask. None: no mask.
        releases: `release_grads` of the optimizer.
        by: "ours", "ddp", "fsdp", or "none": gradients stay where they are.
    """

    name: str
    density: float | None = None
    releases: bool = False
    by: str = "ours"


EXCHANGES = (
    Exchange("nothing is sent", by="none"),
    Exchange("DistributedDataParallel", by="ddp"),
    Exchange("fully_shard", by="fsdp"),
    Exchange("no mask"),
    Exchange("density 0.5", 0.5),
    Exchange("density 0.5, released gradients", 0.5, releases=True),
    Exchange("density 0.1", 0.1),
    Exchange("density 0.1, released gradients", 0.1, releases=True),
    Exchange("density 0.01", 0.01),
    Exchange("density 0.01, released gradients", 0.01, releases=True),
)


def work(rank: int, size: int, options: Options, counted: bool, queue: Any) -> None:
    """One process: every row in every round; the first one puts `Outcome`s into the queue.

    Args:
        rank: which process this is.
        size: how many there are.
        options: what to run.
        counted: whether the loopback device is theirs alone, so that its counter says something.
        queue: a SimpleQueue.
    """
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_PORT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = Ranks.join("cpu")
    meter = Meter(ranks, counted, options.steps)
    torch.manual_seed(0)  # the same weights everywhere
    network = DDPMUNet(channels=options.width, norm_num_groups=min(32, options.width))
    exchanges = [one for one in EXCHANGES if one.name in options.only]
    iterations = [one for one in ITERATIONS if one.name in options.only]
    reference = _Reference(network, options.image_size, ranks) if exchanges else None
    for _ in range(options.rounds):
        for exchange in exchanges:
            outcome = _exchange(exchange, network, reference, meter)
            if ranks.is_first:
                queue.put(outcome)
        for run in iterations:
            outcome = iteration(run, network, options.image_size, meter)
            if ranks.is_first:
                queue.put(outcome)
    ranks.leave()


class _Loss:
    """A denoising loss of one image, this process's own."""

    def __init__(self, image_size: int, rank: int) -> None:
        random = torch.Generator().manual_seed(rank)
        self._x = torch.randn(1, 3, image_size, image_size, generator=random)
        self._noise = torch.randn(self._x.shape, generator=random)
        self._t = torch.tensor([300 + rank])
        self._label = torch.tensor([rank % _CLASSES])

    def __call__(self, network: nn.Module) -> Tensor:
        predicted = network(self._x, self._t, self._label).sample
        return (predicted - self._noise).square().mean()


class _Reference:
    """This process's gradients, and the sums of all, in float64 and tensor by tensor.

    Attributes:
        loss: what they are of.
        own: name -> gradient of this process.
    """

    def __init__(self, network: nn.Module, image_size: int, ranks: Ranks) -> None:
        self.loss = _Loss(image_size, ranks.rank)
        copied = copy.deepcopy(network).eval()
        self.loss(copied).backward()
        self.own = {name: param.grad for name, param in copied.named_parameters()}
        self._sums = {name: ranks.sum_(grad.double()) for name, grad in self.own.items()}
        # N numbers a_i added up in float32, in any order, are off by (N - 1) u sum |a_i| at most.
        # Means cost three roundings more where N is no power of two: 1/N, the product with each
        # number, and the way back to the sum.
        self._bounds = {
            name: (ranks.size + 2) * 2**-24 * ranks.sum_(grad.double().abs())
            for name, grad in self.own.items()
        }

    def agrees(self, name: str, found: Tensor, salient: Tensor | None) -> bool:
        """Whether sums are right: (nnz,) of the entries at bool `salient`, or all entries."""
        expected, bound = self._sums[name], self._bounds[name]
        if salient is not None:
            expected, bound = expected[salient], bound[salient]
        return bool(((found.double() - expected).abs() <= bound).all())


def _exchange(
    exchange: Exchange, network: nn.Module, reference: _Reference, meter: Meter
) -> Outcome:
    """Check, count and time one way to sum gradients; nothing of it is left."""
    ranks = meter.ranks
    copied = copy.deepcopy(network).eval()  # without dropout, gradients are the same every time
    params = dict(copied.named_parameters())
    mask, optimizer, reducer = None, None, None
    called: nn.Module = copied
    payload = 0
    if exchange.by == "ddp":
        called = DistributedDataParallel(copied, process_group=ranks.group)
        payload = sum(param.numel() * param.itemsize for param in params.values())
    elif exchange.by == "fsdp":
        fully_shard(copied, mesh=init_device_mesh("cpu", (ranks.size,)), reshard_after_forward=True)
        payload = sum(param.numel() * param.itemsize for param in params.values())
        params = dict(copied.named_parameters())
    elif exchange.by == "ours":
        if exchange.density is not None:
            mask = SaliencyMask.random(copied, exchange.density, seed=0)
            # exp_avg of the first step is then half the gradient, to the bit.
            optimizer = MaskedAdamW(
                copied.named_parameters(),
                lr=0.0,
                betas=(0.5, 0.999),
                mask=mask,
                release_grads=exchange.releases,
            )
        reducer = GradientReducer(params, mask, ranks, optimizer=optimizer)
        payload = reducer.bytes_per_step

    def step() -> None:
        (optimizer or copied).zero_grad()
        if reducer is not None:
            reducer.before_last_backward()
        reference.loss(called).backward()
        if reducer is not None:
            reducer.finish()

    for _ in range(_WARM_UP):
        step()
    match = _right(exchange, params, mask, optimizer, reference, ranks.size)
    match = meter.everywhere(match)
    wire, ms = meter.measure(step)
    if reducer is not None:
        (optimizer or copied).zero_grad()
        reducer.close()
    numel = sum(param.numel() for param in params.values())
    return Outcome(
        "step",
        exchange.name,
        exchange.density,
        exchange.releases,
        numel,
        match,
        payload,
        wire,
        ms,
    )


def _right(
    exchange: Exchange,
    params: Mapping[str, nn.Parameter],
    mask: SaliencyMask | None,
    optimizer: MaskedAdamW | None,
    reference: _Reference,
    size: int,
) -> bool:
    """Whether the optimizer sees the sums, and frozen entries are still this process's own."""
    if exchange.by == "none":
        return all(torch.equal(p.grad, reference.own[name]) for name, p in params.items())
    if exchange.by == "fsdp":  # means, rows dealt out
        whole = {name: param.grad.full_tensor() for name, param in params.items()}
        return all(reference.agrees(name, size * grad, None) for name, grad in whole.items())
    if mask is None or optimizer is None:
        factor = size if exchange.by == "ddp" else 1
        return all(reference.agrees(n, factor * p.grad, None) for n, p in params.items())
    salient = mask.to_dense()
    if exchange.releases:
        right = all(param.grad is None for param in params.values())
    else:
        right = all(
            torch.equal(p.grad[~salient[n]], reference.own[n][~salient[n]])
            for n, p in params.items()
        )
    optimizer.step()
    return right and all(
        reference.agrees(n, 2 * optimizer.state[p]["exp_avg"], salient[n])
        for n, p in params.items()
        if len(mask.indices[n])
    )
