"""Counts what a training step sends, on a loopback device that nobody else uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from private_network import loopback_bytes

from pecker_fast.distributed import Ranks

__all__ = ["Meter", "Options", "Outcome"]


@dataclass(frozen=True)
class Options:
    """Sizes of what is run.

    Attributes:
        width: base width of the network; 128 as published.
        image_size: height and width in pixels; each process has one image of each kind.
        rounds: rows take turns this often.
        steps: counted and timed in each round.
        only: names of rows.
    """

    width: int = 128
    image_size: int = 32
    rounds: int = 3
    steps: int = 3
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One round of one row. Bytes are of one process and one step."""

    what: str
    name: str
    density: float | None
    releases: bool
    parameters: int
    match: bool
    payload_bytes: int
    wire_bytes: int | None
    ms: list[float]


class Meter:
    """Counts and times a number of steps."""

    def __init__(self, ranks: Ranks, counted: bool, steps: int) -> None:
        self.ranks = ranks
        self._counted = counted
        self._steps = steps

    def measure(self, step: Callable[[], object]) -> tuple[int | None, list[float]]:
        """Bytes that a process sends in a step (None: not counted), and ms of each step.

        The first process reads the counter of all, before and after all of them work. The two
        barriers, under 0.01 MB, are in it.
        """
        self.ranks.wait()
        before = loopback_bytes()
        self.ranks.wait()
        ms = []
        for _ in range(self._steps):
            start = time.perf_counter()
            step()
            ms.append(1e3 * (time.perf_counter() - start))
        self.ranks.wait()
        sent = loopback_bytes() - before
        return (sent // self.ranks.size // self._steps if self._counted else None), ms

    def everywhere(self, match: bool) -> bool:
        """Whether it holds in all processes."""
        return int(self.ranks.sum_(torch.tensor(int(match)))) == self.ranks.size
