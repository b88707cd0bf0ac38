"""The processes of a run that `torchrun` started, or the only one there is.

Everything that is sent between processes goes through a `Ranks`, so code that uses one needs no
case for a single process: there, every call is a no-op.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["Ranks"]

T = TypeVar("T")

TIMEOUT_VARIABLE, TIMEOUT = "PECKER_FAST_TIMEOUT", "45"
"""Environment variable, and its default: seconds that a step waits for the other processes."""

PATIENCE = timedelta(hours=12)
"""How long is waited where one process works and the others do not: files, judging, sampling."""

STARTING = timedelta(minutes=10)
"""How long is waited for all processes to start."""

HEAD_START = 5.0
"""Seconds until a process fails that is not the cause: torchrun ends it as soon as the cause fails.

It looks ten times a second, and names those that have ended when it finds the first.
"""

_CHUNK = 2**28
"""Bytes that are sent at once."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        group: What they talk through in a step; None for one process.
        hosts: The same on the CPU.
        patient: The same on the CPU with a long time limit.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    hosts: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, device_type: str) -> Ranks:
        """Join the processes that `torchrun` started; a run of one process without it.

        A step waits 45 s for the others; the environment variable PECKER_FAST_TIMEOUT sets other
        seconds. Of a process that ends meanwhile the others hear at once.

        Args:
            device_type: cpu (gloo) or cuda (NCCL).

        Raises:
            PeckerError: The others do not come, or a variable of the environment is not set or no
                number.
        """
        try:
            size = int(os.environ.get("WORLD_SIZE") or 1)
            if size == 1:
                return cls()
            seconds = float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT))
            if not 0 < seconds <= PATIENCE.total_seconds():
                raise ValueError(f"{TIMEOUT_VARIABLE}={seconds}")
            backend = "nccl" if device_type == "cuda" else "gloo"
            if (launch := _launch_store()) is None:
                dist.init_process_group(backend, init_method="env://", timeout=STARTING)
            else:
                rank = int(os.environ["RANK"])
                store = _attempt_store(launch, rank, size)
                dist.init_process_group(
                    backend, store=store, rank=rank, world_size=size, timeout=STARTING
                )
            group = hosts = dist.new_group(timeout=timedelta(seconds=seconds))
            if backend == "nccl":
                hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
            patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise PeckerError(
                f"the processes of this run did not find each other ({_first_line(error)}); start "
                f"them with torchrun, and {TIMEOUT_VARIABLE}, if set, with a number of seconds"
            ) from error
        return cls(dist.get_rank(), size, group, hosts, patient)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def rows(self, total: int) -> slice:
        """This process's share of `total` rows: contiguous, and as even as can be."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if not self.alone:
            with self.reporting():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so on one of the processes, in a step."""
        if self.alone:
            return here
        anywhere = torch.tensor([here], dtype=torch.int32)
        with self.reporting():
            dist.all_reduce(anywhere, dist.ReduceOp.MAX, group=self.hosts)
        return bool(anywhere)

    def broadcast(self, value: T | None) -> T:
        """What the first process has, on all of them; the others may give None.

        When it returns, all have arrived: what each did before counts in no step's time limit.

        Args:
            value: Tensors, numbers, strings, None, and dicts and lists of them. Tensors arrive on
                the CPU.
        """
        if self.alone:
            return value  # type: ignore[return-value]
        file = io.BytesIO()
        if self.is_first:
            torch.save(value, file)
        size = torch.tensor([file.getbuffer().nbytes])
        with self.reporting():
            dist.broadcast(size, src=0, group=self.patient)
            content = torch.empty(int(size), dtype=torch.uint8)
            if self.is_first:
                content.copy_(torch.frombuffer(file.getbuffer(), dtype=torch.uint8))
            for chunk in torch.split(content, _CHUNK):
                dist.broadcast(chunk, src=0, group=self.patient)
            dist.barrier(group=self.patient)
        if self.is_first:
            return value  # type: ignore[return-value]
        received: T = torch.load(
            io.BytesIO(content.numpy().data), map_location="cpu", weights_only=True
        )
        return received

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process, on all of them, which wait for it.

        Raises:
            PeckerError: On the others: what was raised on the first, where it stays what it is.
        """
        if self.alone:
            return work()
        outcome: dict[str, Any] | None = None
        if self.is_first:
            try:
                outcome = {"value": work(), "error": None}
            except Exception as error:
                told = str(error)
                if not isinstance(error, PeckerError):
                    told = f"rank 0 has stopped: {type(error).__name__}: {error}"
                with suppress(PeckerError):  # somebody else has stopped: the first error counts
                    self.broadcast({"value": None, "error": told})
                raise
        outcome = self.broadcast(outcome)
        if outcome["error"] is not None:
            raise PeckerError(outcome["error"])
        value: T = outcome["value"]
        return value

    def once(self, what: str, work: Callable[[], None]) -> None:
        """Do the work unless an earlier attempt of this launch (`--max-restarts`) has done it.

        For the first process. An attempt that died in the work counts for nothing. Without torchrun
        every start is a launch of its own.

        Args:
            what: A name of the work that no other work of the run has.
            work: What is done.
        """
        with self.reporting():
            store = _launch_store()
            if store is not None and store.check([what]):
                return
        work()
        if store is not None:
            with self.reporting():
                store.set(what, "done")

    def check_same(self, value: str, what: str) -> None:
        """Compare with the first process.

        Args:
            value: Of several lines, or of one that says nothing to a reader.
            what: "another ...", if they differ.

        Raises:
            PeckerError: They differ. Every process raises it, so that none waits for another.
        """
        if self.alone:
            return
        values: list[str] = [""] * self.size
        with self.reporting():
            dist.all_gather_object(values, value, group=self.patient)
        for rank, theirs in enumerate(values):
            if theirs != values[0]:
                raise PeckerError(
                    f"the processes of this run do not agree: rank {rank} has {what} than rank 0"
                    f"{_first_difference(theirs, values[0])}; start all of them with the same "
                    "command and the same files"
                )

    def gather(self, rows: Tensor, total: int) -> Tensor | None:
        """All rows of which each process has its `rows(total)`: on the first; None on the others.

        Args:
            rows: (n, ...) on the CPU; n may differ by process.
            total: How many there are together.
        """
        if self.alone:
            return rows
        largest = -(-total // self.size)
        padded = rows.new_zeros(largest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.is_first else None
        with self.reporting():
            dist.gather(padded, parts, dst=0, group=self.patient)
        if parts is None:
            return None
        counts = [total * (i + 1) // self.size - total * i // self.size for i in range(self.size)]
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def wait(self) -> None:
        """Wait until all are here, however long the first one works."""
        if not self.alone:
            with self.reporting():
                dist.barrier(group=self.patient)

    def leave(self) -> None:
        """The run is over."""
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """One clear line where a process has died or hangs, instead of what the sockets say."""
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's, DistBackendError included
            if "TORCHELASTIC_RUN_ID" in os.environ:
                with suppress(ValueError):  # not the main thread
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing left to save
                time.sleep(HEAD_START)
            raise PeckerError(
                f"rank {self.rank} of {self.size} lost the others, or one of them took longer than "
                f"{TIMEOUT_VARIABLE}={os.environ.get(TIMEOUT_VARIABLE, TIMEOUT)} seconds in a step "
                f"({_first_line(error)}); start the same command again to go on from the last "
                "checkpoint"
            ) from error


def _launch_store() -> Any:
    """The store that torchrun keeps for all attempts of this launch; None without it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, wait_for_workers=False, timeout=STARTING
    )
    return dist.PrefixStore("pecker-fast", store)  # type: ignore[attr-defined]


def _attempt_store(launch: Any, rank: int, size: int) -> Any:
    """The part of torchrun's store that is this attempt's.

    Elsewhere there are still the addresses of the attempt before: torch 2.13 reads them in two of
    three restarts. The count of restarts does not tell attempts apart, since on several machines
    each counts for itself. So the first process makes a name up. It answers every question, under
    the name that the other process made up for it: one may be of the attempt before.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        launch.set(f"question of {rank}", name)
        name = launch.get(f"answer to {name}").decode()
        launch.add(f"heard of {name}", 1)
    until = time.monotonic() + STARTING.total_seconds()
    while rank == 0 and launch.add(f"heard of {name}", 0) < size - 1:
        for other in range(1, size):
            if launch.check([f"question of {other}"]):
                launch.set(f"answer to {launch.get(f'question of {other}').decode()}", name)
        if time.monotonic() > until:
            raise RuntimeError(f"not all of them came in {STARTING.total_seconds():.0f} s")
        time.sleep(0.1)
    return dist.PrefixStore(name, launch)  # type: ignore[attr-defined]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _first_difference(mine: str, theirs: str) -> str:
    """Where two texts of several lines, YAML as a rule, differ first: " (mine, there theirs)"."""
    if "\n" not in mine:
        return ""
    pairs = itertools.zip_longest(mine.splitlines(), theirs.splitlines(), fillvalue="nothing")
    ours, other = next(pair for pair in pairs if pair[0] != pair[1])
    return f" ({ours.strip()}, there {other.strip()})"
