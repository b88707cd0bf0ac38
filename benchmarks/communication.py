"""Bytes that processes send to each other in a training step: ours against torch's dense DDP.

    unshare -rn sh -c 'ip link set lo up && python benchmarks/communication.py --json out.json'
    python benchmarks/communication.py --processes 2 --preset tiny     # payloads alone

All processes run on this machine and talk through gloo. In a network of their own, as in the first
line, what its loopback device sends is all that they send, with the headers of TCP and IP.
Elsewhere `wire_bytes` is null and shares are of the payload, i.e. of what the buckets hold.

A step is a forward and a backward pass and the sums. Every row is checked first: each process's
sums against gradients that were added up in float64, to the rounding that adding up in float32
explains. `iteration` rows are whole iterations of the trainer, in which both networks learn; they
are checked by their frozen entries and by the bits, which must be the same in all processes. A row
that fails has no figure, and the exit code is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench import Case, Setup, command, make_parser
from networks import Teacher
from rows import Row
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from variants import configuration

from pecker_fast import MaskedAdamW, PeckerTrainer, SaliencyMask
from pecker_fast.distributed import GradientReducer, Ranks
from pecker_fast.runs.digest import fingerprint

__all__ = [
    "WAYS", "CommunicationCase", "Way", "loopback_bytes", "main", "ring_bytes", "sums_agree",
]  # fmt: skip

_WARM_UP, _COUNTED = 2, 2  # DistributedDataParallel lays out its buckets anew in the second step
DDP = "DistributedDataParallel"


def ring_bytes(payload: float, processes: int) -> float:
    """What each process sends to add up `payload` bytes over all, in a ring: 2 (N-1)/N of them.

    Half of it deals out the sums (reduce-scatter), half collects them (all-gather); there is no way
    to send less (Patarasuk and Yuan, 2009).
    """
    return 2 * (processes - 1) / processes * payload


@dataclass(frozen=True)
class Way:
    """A way to sum gradients over processes."""

    name: str  # of the row
    density: float | None = None  # of a random mask. None: no mask.
    releases: bool = False  # `release_grads` of the optimizer
    by: str = "ours"  # "ours", or torch's "ddp" or "fsdp"
    # Of iterations of the trainer: what is masked, "generator" or "both"; "" of a step.
    apply: str = ""


WAYS = (
    Way(DDP, by="ddp"),
    Way("fully_shard", by="fsdp"),
    Way("no mask"),
    Way("density 0.5", 0.5),
    Way("density 0.5, released gradients", 0.5, releases=True),
    Way("density 0.1", 0.1),
    Way("density 0.1, released gradients", 0.1, releases=True),
    Way("density 0.01", 0.01),
    Way("density 0.01, released gradients", 0.01, releases=True),
    Way("no mask, both networks", apply="both"),
    Way("mask on the generator, dense pseudo-score", 0.1, apply="generator"),
    Way("mask on both", 0.1, apply="both"),
    Way("mask on both, released gradients", 0.1, releases=True, apply="both"),
)


# ---- one process


def work(rank: int, preset: str, names: Sequence[str], size: int, queue: Any) -> None:
    """Check and count the ways of these names; the first process puts its rows into the queue."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = Ranks.join("cpu")
    teacher = Teacher(preset)  # the same weights everywhere
    for way in WAYS:
        if way.name not in names:
            continue
        step, payload, right = (_iterations if way.apply else _steps)(way, teacher, ranks)
        for _ in range(_WARM_UP):
            step()
        match = int(ranks.sum_(torch.tensor(int(right())))) == size
        row: Row = {"name": way.name, "what": "iteration" if way.apply else "step", "match": match}
        row["parameters"] = sum(param.numel() for param in teacher.parameters())
        row |= {"payload_bytes": payload, "wire_bytes": None}
        # The counter is that of all processes, read before and after all of them work. The two
        # barriers, under 0.01 MB, are in it.
        ranks.wait()
        before = loopback_bytes()
        ranks.wait()
        for _ in range(_COUNTED):
            step()
        ranks.wait()
        if match and before is not None:
            row["wire_bytes"] = (loopback_bytes() - before) // size // _COUNTED
        if ranks.is_first:
            queue.put(row)
    ranks.leave()


Made = tuple[Callable[[], object], int, Callable[[], bool]]
"""A step, the bytes of its buckets, and whether what it left is right."""


def _steps(way: Way, teacher: Teacher, ranks: Ranks) -> Made:
    """Forward and backward passes of one network, and their sums."""
    network = teacher.copy(dropout=False)
    random = torch.Generator().manual_seed(ranks.rank)
    x = torch.randn(1, *teacher.network.sample_shape, generator=random)

    def backward(called: nn.Module) -> None:
        called(x, torch.tensor([300]), torch.tensor([ranks.rank])).sample.square().mean().backward()

    backward(network)
    own = {name: param.grad.double() for name, param in network.named_parameters()}
    sums = {name: ranks.sum_(grad.clone()) for name, grad in own.items()}
    sizes = {name: ranks.sum_(grad.abs()) for name, grad in own.items()}
    called, salient = network, dict.fromkeys(own)
    if way.by == "ddp":
        called = DistributedDataParallel(network, process_group=ranks.group)
    elif way.by == "fsdp":
        mesh = init_device_mesh("cpu", (ranks.size,))
        called = fully_shard(network, mesh=mesh, reshard_after_forward=True)
    params = dict(network.named_parameters())

    def plain_step() -> None:
        network.zero_grad()
        backward(called)

    def sums_of_means() -> dict[str, Tensor]:
        grads = {name: ranks.size * param.grad for name, param in params.items()}
        return {name: g.full_tensor() if way.by == "fsdp" else g for name, g in grads.items()}

    def agree(found: dict[str, Tensor]) -> bool:
        return all(
            sums_agree(found[name], sums[name], sizes[name], ranks.size, salient[name])
            for name in params
        )

    if way.by != "ours":
        payload = sum(4 * param.numel() for param in own.values())
        return plain_step, payload, lambda: agree(sums_of_means())

    mask = None if way.density is None else SaliencyMask.random(network, way.density, seed=0)
    salient |= {} if mask is None else mask.to_dense()
    # exp_avg of the first step is half the gradient, to the bit.
    options = {"lr": 0.0, "betas": (0.5, 0.999), "release_grads": way.releases}
    optimizer = MaskedAdamW(params.items(), mask=mask, **options)
    reducer = GradientReducer(params, mask, ranks, optimizer=optimizer)

    def masked_step() -> None:
        optimizer.zero_grad()
        reducer.before_last_backward()
        backward(network)
        reducer.finish()

    def right() -> bool:
        optimizer.step()
        return agree({name: 2 * optimizer.state[p]["exp_avg"] for name, p in params.items()})

    return masked_step, reducer.bytes_per_step, right


def sums_agree(
    found: Tensor, sums: Tensor, sizes: Tensor, processes: int, salient: Tensor | None
) -> bool:
    """Whether sums are right, to what adding up in float32 costs.

    N numbers a_i added up in float32, in any order, are off by (N - 1) u sum |a_i| at most. Means
    cost three roundings more where N is no power of two: 1/N, the product with each number, and the
    way back to the sum. Found are (nnz,) at bool `salient`, or all entries, of `processes`; sums
    and sizes, which are sums of absolute values, are float64.
    """
    bound = (processes + 2) * 2**-24 * sizes
    if salient is not None:
        sums, bound = sums[salient], bound[salient]
    return bool(((found.double() - sums).abs() <= bound).all())


def _iterations(way: Way, teacher: Teacher, ranks: Ranks) -> Made:
    """Iterations of the trainer, in which both networks learn; an image of each kind a process."""
    settings = {
        "iterations": 1000,
        "mask.kind": "full" if way.density is None else "random",
        "mask.apply": way.apply,
        "optimizer.release_grads": way.releases,
        "logging.every": 1000,
        "logging.checkpoint_every": 1000,
    }
    config = configuration(teacher, ranks.size, way.density or 1.0, settings)
    trainer = PeckerTrainer(teacher.objective(config, "cpu"), ranks=ranks)
    step = trainer.run().__next__
    step()  # a learner lays out its buckets at its first
    payload = sum(learner._reducer.bytes_per_step for learner in trainer.learners)

    def right() -> bool:
        match = trainer.verify_frozen().frozen_changed == 0
        for _, network in trainer.networks():
            found = fingerprint(network)
            match = ranks.broadcast(found) == found and match
        return match

    return step, payload, right


# ---- all processes


def loopback_bytes() -> int | None:
    """Bytes that this network's loopback device has sent, headers included.

    Returns:
        None where the network has other devices: others may talk there, too.
    """
    devices = Path("/proc/self/net/dev")
    lines = devices.read_text().splitlines()[2:] if devices.exists() else []
    counters = {name.strip(): found.split() for name, _, found in (s.partition(":") for s in lines)}
    return int(counters["lo"][8]) if counters.keys() == {"lo"} else None


@dataclass(frozen=True)
class CommunicationCase(Case):
    """All ways with one number of processes."""

    benchmark = "communication"

    processes: int

    def rows(self, setup: Setup) -> Iterator[Row]:
        """A row of each way, with its share of DDP's bytes."""
        names = [DDP, *(setup.only or [way.name for way in WAYS])]
        # Forked from a server that has imported once what each of them would.
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pecker_fast.distill.trainer", "pecker_fast.models.ddpm"])
        queue = context.SimpleQueue()
        arguments = (self.preset, names, self.processes, queue)
        torch.multiprocessing.start_processes(
            work, arguments, self.processes, start_method="forkserver"
        )
        sent = "payload_bytes" if loopback_bytes() is None else "wire_bytes"
        of_ddp = None
        while not queue.empty():  # some kB, which the pipe holds
            row = queue.get()
            of_ddp = of_ddp or row[sent]
            if row["match"]:
                networks = 2 if row["what"] == "iteration" else 1
                row["share_of_ddp"] = row[sent] / (networks * of_ddp)
                row["wire_of_ring"] = row[sent] / ring_bytes(row["payload_bytes"], self.processes)
            yield {"benchmark": self.benchmark, **asdict(self), **row}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=_COUNTED)
    parser.set_defaults(threads=1)  # of each process
    parser.add_argument("--preset", choices=["cifar10", "tiny"], default="cifar10")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args(argv)
    return command(options, [CommunicationCase(options.preset, n) for n in options.processes])


if __name__ == "__main__":
    sys.exit(main())
