"""The processes of a run that `torchrun` started, or the only one there is.

Everything that is sent between processes goes through a `Ranks`, so code that uses one needs no
case for a single process: there, every call is a no-op.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["Ranks"]

T = TypeVar("T")

TIMEOUT = timedelta(seconds=60)
"""How long a step waits for the others before it says that one of them is gone."""

PATIENCE = timedelta(hours=12)
"""How long is waited where one process works and the others do not: files, judging, sampling."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        local_rank: Which one on its machine: the number of its GPU.
        group: What they talk through; None for one process.
        patient: The same with a long time limit, on the CPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, device_type: str) -> Ranks:
        """Join the processes that `torchrun` started; a run of one process without it.

        Args:
            device_type: cpu (gloo) or cuda (NCCL).

        Raises:
            PeckerError: The others do not come.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            backend = "nccl" if device_type == "cuda" else "gloo"
            try:
                dist.init_process_group(backend, timeout=TIMEOUT)
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise PeckerError(
                    f"the processes of this run did not find each other ({reason}); start them "
                    "with torchrun, with one address and port for all nodes"
                ) from error
        return cls(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            group=dist.group.WORLD,
            patient=dist.new_group(backend="gloo", timeout=PATIENCE),
        )

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

        For anything that can be pickled, between processes of one run.
        """
        if self.alone:
            return value  # type: ignore[return-value]
        box: list[Any] = [value if self.is_first else None]
        with self.reporting():
            dist.broadcast_object_list(box, src=0, group=self.patient)
        received: T = box[0]
        return received

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
            reason = str(error).strip().splitlines()[0]
            raise PeckerError(
                f"rank {self.rank} of {self.size} lost the others ({reason}): one of them has "
                "stopped; its own message says why. Start the same command again to go on from "
                "the last checkpoint"
            ) from error
