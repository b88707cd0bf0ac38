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
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import few

__all__ = ["Ranks"]

T = TypeVar("T")

TIMEOUT_VARIABLE, TIMEOUT = "PECKER_FAST_TIMEOUT", "45"
"""Environment variable, and its default: seconds that a step waits for the other processes."""

HEAD_START = 5.0
"""Seconds until a process fails that is not the cause: torchrun ends it as soon as the cause fails.

It looks ten times a second, and names those that have ended when it finds the first.
"""

_PATIENCE = timedelta(hours=12)  # where one process works and the others wait: files, judging
_STARTING = timedelta(minutes=10)  # until all processes have started
_CHUNK = 2**28  # bytes that are sent at once


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        store: Where they meet, however long one of them works; None for one process.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    _meetings: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @classmethod
    def join(cls, device_type: str) -> Ranks:
        """Join the processes that `torchrun` started; a run of one process without it.

        A step waits 45 s for the others; the environment variable PECKER_FAST_TIMEOUT sets other
        seconds. Of a process that ends meanwhile the others hear at once.

        Args:
            device_type: cpu (gloo) or cuda (NCCL, and gloo for what is on the CPU).

        Raises:
            PeckerError: The others do not come, or a variable of the environment is not set or no
                number.
        """
        try:
            size = int(os.environ.get("WORLD_SIZE") or 1)
            if size == 1:
                return cls()
            seconds = float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT))
            if not 0 < seconds <= _PATIENCE.total_seconds():
                raise ValueError(f"{TIMEOUT_VARIABLE}={seconds}")
            rank, of_torchrun = int(os.environ["RANK"]), _has_launch_store()
            store = _connection(is_master=rank == 0 and not of_torchrun)
            name = _name_of_attempt(store, rank, size) if of_torchrun else "run"
            # A connection of its own: who waits in one keeps torch's own threads from using it.
            ranks = cls(rank, size, _part(name, _connection()))
            ranks._meet(_STARTING)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
                store=_part(name, store), rank=rank, world_size=size,
                timeout=timedelta(seconds=seconds),
            )  # fmt: skip
        except (RuntimeError, ValueError, KeyError) as error:
            raise PeckerError(
                f"the processes of this run did not find each other ({_first_line(error)}); start "
                f"them with torchrun, and {TIMEOUT_VARIABLE}, if set, with a number of seconds"
            ) from error
        return ranks

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
                dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so on one of the processes, in a step."""
        if self.alone:
            return here
        anywhere = torch.tensor([here], dtype=torch.int32)
        with self.reporting():
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
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
        self.wait()
        file = io.BytesIO()
        if self.is_first:
            torch.save(value, file)
        size = torch.tensor([file.getbuffer().nbytes])
        with self.reporting():
            dist.broadcast(size, src=0)
            content = torch.empty(int(size), dtype=torch.uint8)
            if self.is_first:
                content.copy_(torch.frombuffer(file.getbuffer(), dtype=torch.uint8))
            for chunk in torch.split(content, _CHUNK):
                dist.broadcast(chunk, src=0)
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
        if not _has_launch_store():
            return work()
        with self.reporting():
            store = _part("pecker-fast", _connection())
            if store.check([what]):
                return
        work()
        with self.reporting():
            store.set(what, "done")

    def check_same(self, value: str, what: str) -> None:
        """Compare with the first process.

        Args:
            value: Of one line or several.
            what: "another ...", if they differ.

        Raises:
            PeckerError: They differ. Every process raises it, so that none waits for another.
        """
        if self.alone:
            return
        self.wait()
        values: list[str] = [""] * self.size
        with self.reporting():
            dist.all_gather_object(values, value)
        first = values[0].splitlines()
        for rank, theirs in enumerate(values):
            if theirs != values[0]:
                odd = few((line for line in theirs.splitlines() if line not in first), 1)
                raise PeckerError(
                    f"the processes of this run do not agree: rank {rank} has {what} than rank 0 "
                    f"({odd}); start all of them with the same command and the same files"
                )

    def gather(self, rows: Tensor, total: int) -> Tensor | None:
        """All rows of which each process has its `rows(total)`: on the first; None on the others.

        Args:
            rows: (n, ...) on the CPU; n may differ by process.
            total: How many there are together.
        """
        if self.alone:
            return rows
        self.wait()
        parts: list[Any] | None = [None] * self.size if self.is_first else None
        with self.reporting():
            dist.gather_object(rows, parts, dst=0)
        return None if parts is None else torch.cat(parts)

    def wait(self) -> None:
        """Wait until all are here, however long the first one works."""
        if not self.alone:
            with self.reporting():
                self._meet(_PATIENCE)
            self.any(False)  # whoever goes on may end, and the store with it

    def _meet(self, patience: timedelta) -> None:
        meeting = f"meeting {next(self._meetings)}"
        if self.store.add(meeting, 1) == self.size:
            self.store.set(f"all at {meeting}", "")
        self.store.wait([f"all at {meeting}"], patience)

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


def _has_launch_store() -> bool:
    """Whether torchrun keeps a store for all attempts of this launch."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connection(*, is_master: bool = False) -> Any:
    """A connection to the store of this launch, which the master makes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=is_master, wait_for_workers=False, timeout=_STARTING
    )


def _part(name: str, store: Any) -> Any:
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _name_of_attempt(store: Any, rank: int, size: int) -> str:
    """Of the part of torchrun's store that is this attempt's.

    Elsewhere there are still the addresses of the attempt before: torch 2.13 reads them in two of
    three restarts. The count of restarts does not tell attempts apart, since on several machines
    each counts for itself. So the first process makes a name up. It answers every question, under
    the name that the other process made up for it: one may be of the attempt before.
    """
    launch = _part("pecker-fast", store)
    name = uuid.uuid4().hex
    if rank > 0:
        launch.set(f"question of {rank}", name)
        name = launch.get(f"answer to {name}").decode()
        launch.add(f"heard of {name}", 1)
    until = time.monotonic() + _STARTING.total_seconds()
    while rank == 0 and launch.add(f"heard of {name}", 0) < size - 1:
        for other in range(1, size):
            if launch.check([f"question of {other}"]):
                launch.set(f"answer to {launch.get(f'question of {other}').decode()}", name)
        if time.monotonic() > until:
            raise RuntimeError(f"not all of them came in {_STARTING.total_seconds():.0f} s")
        time.sleep(0.1)
    return name


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
