"""The processes of a run that `torchrun` started, or the only one there is.

Everything that is sent between processes goes through a `Ranks`, so code that uses one needs no
case for a single process: there, every call is a no-op.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pecker_fast.distributed.meeting import Meeting, launch_store
from pecker_fast.distributed.watch import GO_ON, Watch, farewell, watch
from pecker_fast.errors import PeckerError
from pecker_fast.launcher import number, processes

__all__ = ["Ranks"]

T = TypeVar("T")

TIMEOUT = timedelta(seconds=45)
"""How long a step waits for the others before it says that one of them is gone.

With what torchrun takes to end the rest, a run has ended about a minute after one process hangs.
"""

TIMEOUT_VARIABLE = "PECKER_FAST_TIMEOUT"
"""Environment variable that overrides `TIMEOUT`, in seconds."""

_CHUNK = 2**28
"""Bytes that are sent at once."""

PATIENCE = timedelta(hours=12)
"""How long is waited where one process works and the others do not: files, judging, sampling."""


STARTING = timedelta(minutes=10)
"""How long is waited for all processes to start."""

_LINE = 400
"""Bytes of a line that a process tells all others."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        local_rank: Which one on its machine: the number of its GPU.
        group: What they talk through; None for one process.
        patient: The same with a long time limit, on the CPU.
        watch: Knows which of the others have stopped; None for one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None
    watch: Watch | None = None

    @classmethod
    def join(cls, device_type: str) -> Ranks:
        """Join the processes that `torchrun` started; a run of one process without it.

        A step waits 45 s for the others; the environment variable PECKER_FAST_TIMEOUT sets other
        seconds. Where another process gives no sign of life for so long (10 s at the least),
        this one ends, whatever it waits for.

        Args:
            device_type: cpu (gloo) or cuda (NCCL).

        Raises:
            PeckerError: The others do not come, a variable of the environment is no number, or
                this is not the first call.
        """
        if processes() == 1:
            return cls()
        timeout = _timeout()
        if dist.is_initialized():
            raise PeckerError(
                "Ranks.join: torch.distributed is initialised already; call it once, before that"
            )
        meeting = None
        try:
            meeting = Meeting(STARTING)
            rank, size = meeting.rank, meeting.size
            dist.init_process_group(
                "nccl" if device_type == "cuda" else "gloo",
                store=meeting.store,
                rank=rank,
                world_size=size,
                timeout=STARTING,
            )
            watching = watch(meeting, timeout.total_seconds())
            group = dist.new_group(timeout=timeout)
            patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        except PeckerError:
            raise
        except (RuntimeError, ValueError) as error:
            if meeting is not None:
                meeting.check()
            reason = str(error).splitlines()[0]
            raise PeckerError(
                f"the processes of this run did not find each other ({reason}); start them "
                "with torchrun, with one address and port for all nodes"
            ) from error
        watching.start()
        local_rank = number("LOCAL_RANK", default=0)
        return cls(rank, size, local_rank, group, patient, watching)

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
                with suppress(PeckerError):  # somebody else has stopped: the first error counts
                    self.broadcast({"value": None, "error": _told(error)})
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
            store = launch_store()
            done = store is not None and store.check([what])
        if done:
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
        theirs: str = self.broadcast(value)
        line = ""
        if theirs != value:
            line = f"rank {self.rank} has {what} than rank 0{_first_difference(value, theirs)}"
        if said := [line for line in self._all_say(line) if line]:
            others = f", and {len(said) - 1} more differ" if len(said) > 1 else ""
            raise PeckerError(
                f"the processes of this run do not agree: {said[0]}{others}; start all of them "
                "with the same command and the same files"
            )

    def any(self, flag: bool) -> bool:
        """Whether one of the processes at least says so."""
        if self.alone:
            return flag
        said = torch.tensor([int(flag)])
        with self.reporting():
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self.patient)
        return bool(said)

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

    def _all_say(self, line: str) -> list[str]:
        """A short line of each, on all of them."""
        mine = torch.zeros(_LINE, dtype=torch.uint8)
        content = line.encode()[:_LINE]
        mine[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        lines = [torch.empty_like(mine) for _ in range(self.size)]
        with self.reporting():
            dist.all_gather(lines, mine, group=self.patient)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in lines]

    def wait(self) -> None:
        """Wait until all are here, however long the first one works."""
        if not self.alone:
            with self.reporting():
                dist.barrier(group=self.patient)

    def leave(self) -> None:
        """The run is over."""
        farewell()
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """One clear line where a process has died or hangs, instead of what the sockets say."""
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's, DistBackendError included
            reason = str(error).strip().splitlines()[0]
            told = None if self.watch is None else self.watch.explain()
            if told is None and ("timed out" in reason.lower() or "timeout" in reason.lower()):
                told = (
                    f"rank {self.rank} waited for the others in vain, which all live: one of them "
                    f"needs more time ({TIMEOUT_VARIABLE} in seconds) or waits for something else"
                )
            elif told is None:
                told = f"rank {self.rank} of {self.size} lost the others ({reason})"
            raise PeckerError(f"{told}; {GO_ON}") from error


def _timeout() -> timedelta:
    """`TIMEOUT`, or what the environment has instead."""
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.001 <= seconds <= PATIENCE.total_seconds():
        raise PeckerError(
            f"{TIMEOUT_VARIABLE}={text}: expected seconds from 0.001 to "
            f"{PATIENCE.total_seconds():.0f}, e.g. {TIMEOUT.total_seconds():.0f}"
        )
    return timedelta(seconds=seconds)


def _told(error: Exception) -> str:
    """What the other processes hear of an error on the first."""
    if isinstance(error, PeckerError):
        return str(error)
    return f"rank 0 has stopped: {type(error).__name__}: {error}"


def _first_difference(mine: str, theirs: str) -> str:
    """Where two texts of several lines, YAML as a rule, differ first: " (mine, there theirs)"."""
    if "\n" not in mine:
        return ""
    section = ""
    for ours, other in itertools.zip_longest(mine.splitlines(), theirs.splitlines(), fillvalue=""):
        if ours != other:
            inside = f"{section} " if ours.startswith(" ") else ""
            return f" ({inside}{ours.strip() or 'nothing'}, there {other.strip() or 'nothing'})"
        if not ours.startswith(" "):
            section = ours
    return ""
