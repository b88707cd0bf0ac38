"""Bytes that processes send to each other in a training step: ours against torch's dense DDP.

    python benchmarks/communication.py                              # 2 and 4 processes, full size
    python benchmarks/communication.py --processes 2 --preset tiny_ddpm --json out.json

All processes run on this machine and talk through gloo, in a network of their own: what its
loopback device sends is all that they send, with the headers of TCP and IP. Where there can be no
such network (it takes Linux, and root or `unshare -rn python ...`), `wire_bytes` is null and shares
are of the payload, i.e. of what the buckets hold.

A step is a forward and a backward pass and the sums. Every row is checked first: each process's
sums against gradients that were added up in float64, to the rounding that adding up in float32
explains. `iteration` rows are whole iterations of the trainer, in which both networks learn; they
are checked by their frozen entries and by the bits, which must be the same in all processes. A row
that fails has no figure, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import machine
from networks import Teacher
from rows import Row, write_results
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from variants import configuration

from pecker_fast import MaskedAdamW, PeckerTrainer, SaliencyMask
from pecker_fast.distributed import GradientReducer, Ranks

__all__ = ["WAYS", "Way", "main", "private_network", "ring_bytes", "sums_agree"]

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
    """A way to sum gradients over processes.

    Attributes:
        name: of the row.
        density: of a random mask. None: no mask.
        releases: `release_grads` of the optimizer.
        by: "ours", or torch's "ddp" or "fsdp".
        apply: of iterations of the trainer: what is masked, "generator" or "both"; "" of a step.
    """

    name: str
    density: float | None = None
    releases: bool = False
    by: str = "ours"
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


def work(rank: int, arguments: argparse.Namespace, size: int, counted: bool, queue: Any) -> None:
    """Check and count every way; the first process puts its rows into the queue."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = Ranks.join("cpu")
    teacher = Teacher(arguments.preset)  # the same weights everywhere
    for way in WAYS:
        if arguments.only and way.name not in (DDP, *arguments.only):
            continue
        step, payload, right = (_iterations if way.apply else _steps)(way, teacher, ranks)
        for _ in range(_WARM_UP):
            step()
        match = int(ranks.sum_(torch.tensor(int(right())))) == size
        row: Row = {"processes": size, "what": "iteration" if way.apply else "step"}
        row |= {"name": way.name, "density": way.density, "releases": way.releases, "match": match}
        row["parameters"] = sum(param.numel() for param in teacher.parameters())
        row |= {"payload_bytes": payload, "wire_bytes": None}
        # The counter is that of all processes, read before and after all of them work. The two
        # barriers, under 0.01 MB, are in it.
        ranks.wait()
        before = _loopback_bytes()
        ranks.wait()
        for _ in range(_COUNTED):
            step()
        ranks.wait()
        if match and counted:
            row["wire_bytes"] = (_loopback_bytes() - before) // size // _COUNTED
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
    mask, optimizer, reducer, called = None, None, None, network
    if way.by == "ddp":
        called = DistributedDataParallel(network, process_group=ranks.group)
    elif way.by == "fsdp":
        mesh = init_device_mesh("cpu", (ranks.size,))
        called = fully_shard(network, mesh=mesh, reshard_after_forward=True)
    params = dict(network.named_parameters())
    if way.density is not None:
        mask = SaliencyMask.random(network, way.density, seed=0)
        # exp_avg of the first step is then half the gradient, to the bit.
        options = {"lr": 0.0, "betas": (0.5, 0.999), "release_grads": way.releases}
        optimizer = MaskedAdamW(params.items(), mask=mask, **options)
    payload = sum(4 * param.numel() for param in params.values())
    if way.by == "ours":
        reducer = GradientReducer(params, mask, ranks, optimizer=optimizer)
        payload = reducer.bytes_per_step

    def step() -> None:
        (optimizer or called).zero_grad()
        if reducer is not None:
            reducer.before_last_backward()
        backward(called)
        if reducer is not None:
            reducer.finish()

    def right() -> bool:
        salient: dict[str, Tensor] = {}
        if mask is not None:
            salient = mask.to_dense()
            optimizer.step()
            found = {name: 2 * optimizer.state[param]["exp_avg"] for name, param in params.items()}
        else:
            factor = 1 if way.by == "ours" else ranks.size  # torch's are means
            found = {name: factor * param.grad for name, param in params.items()}
        if way.by == "fsdp":
            found = {name: grad.full_tensor() for name, grad in found.items()}
        return all(
            sums_agree(found[name], sums[name], sizes[name], ranks.size, salient.get(name))
            for name in params
        )

    return step, payload, right


def sums_agree(
    found: Tensor, sums: Tensor, sizes: Tensor, processes: int, salient: Tensor | None
) -> bool:
    """Whether sums are right, to what adding up in float32 costs.

    N numbers a_i added up in float32, in any order, are off by (N - 1) u sum |a_i| at most. Means
    cost three roundings more where N is no power of two: 1/N, the product with each number, and the
    way back to the sum.

    Args:
        found: (nnz,) at bool `salient`, or all entries.
        sums: of all processes, float64.
        sizes: sums of the absolute values.
        processes: N.
        salient: None: all.
    """
    bound = (processes + 2) * 2**-24 * sizes
    if salient is not None:
        sums, bound = sums[salient], bound[salient]
    return bool(((found.double() - sums).abs() <= bound).all())


def _iterations(way: Way, teacher: Teacher, ranks: Ranks) -> Made:
    """Iterations of the trainer, in which both networks learn; an image of each kind a process."""
    kind = "full" if way.density is None else "random"
    settings: Mapping[str, Any] = {
        "iterations": 1000,
        "mask.kind": kind,
        "mask.apply": way.apply,
        "optimizer.release_grads": way.releases,
        "logging.every": 1000,
        "logging.checkpoint_every": 1000,
    }
    config = configuration(teacher, ranks.size, way.density or 1.0, settings)
    reducers: list[GradientReducer] = []
    plain = GradientReducer.__init__

    def recorded(reducer: GradientReducer, *args: Any, **options: Any) -> None:
        plain(reducer, *args, **options)
        reducers.append(reducer)

    with mock.patch.object(GradientReducer, "__init__", recorded):
        trainer = PeckerTrainer(teacher.objective(config, "cpu"), ranks=ranks)
        step = trainer.run().__next__
        step()

    def right() -> bool:
        match = trainer.verify_frozen().frozen_changed == 0
        for learned in ("generator", "pseudo_score"):
            hashed = hashlib.sha256()
            for param in getattr(trainer, learned).parameters():
                hashed.update(param.detach().numpy().tobytes())
            match = ranks.broadcast(hashed.hexdigest()) == hashed.hexdigest() and match
        return match

    return step, sum(reducer.bytes_per_step for reducer in reducers), right


# ---- a network of their own


@contextmanager
def private_network() -> Iterator[str | None]:
    """This thread, and processes that it starts inside, have a network with loopback only.

    Yields:
        None, or why it could not be made: then nothing has changed.
    """
    new_network, set_flags, up_and_running = 0x40000000, 0x8914, 0x41  # of Linux's headers
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(new_network) != 0:
            yield f"no network of its own: {os.strerror(ctypes.get_errno())}"
            return
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                request = struct.pack("16sH14x", b"lo", up_and_running)
                fcntl.ioctl(any_socket, set_flags, request)
            yield None
        finally:
            if libc.setns(before.fileno(), new_network) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network from before")


def _loopback_bytes() -> int:
    """Bytes that the loopback device of this thread's network has sent, headers included."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    counters = next(line for line in lines if line.strip().startswith("lo:"))
    return int(counters.partition(":")[2].split()[8])


# ---- all processes


def measure(processes: int, arguments: argparse.Namespace, counted: bool) -> list[Row]:
    """All rows for a number of processes, with shares of DDP's; inside a private network."""
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(work, (arguments, processes, counted, queue), nprocs=processes)
    rows: list[Row] = []
    while not queue.empty():  # some kB, which the pipe holds
        rows.append(queue.get())
    sent = "wire_bytes" if counted else "payload_bytes"
    for row in rows:
        if row["match"]:
            networks = 2 if row["what"] == "iteration" else 1
            row["share_of_ddp"] = row[sent] / (networks * rows[0][sent])
            row["wire_of_ring"] = row[sent] / ring_bytes(row["payload_bytes"], processes)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [way.name for way in WAYS]
    parser.add_argument("--preset", choices=["cifar10", "tiny_ddpm"], default="cifar10")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args(argv)
    about = machine() | {"threads": 1}  # of each process
    rows: list[Row] = []
    with private_network() as obstacle:
        how = obstacle or "bytes that the loopback device of a private network sent"
        print(how)
        for processes in arguments.processes:
            for row in measure(processes, arguments, counted=obstacle is None):
                rows.append(row)
                share = f"{row['share_of_ddp']:.2%} of DDP" if row["match"] else "WRONG"
                sizes = f"payload {row['payload_bytes']:,}, sent {row['wire_bytes']}"
                print(f"  {processes} processes, {row['what']} {row['name']}: {sizes}, {share}")
            if arguments.json:
                write_results(arguments.json, {"machine": about, "wire": how, "rows": rows})
    return 0 if all(row["match"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
