"""Times of calls, on the CPU in turns and on a GPU by events; the bandwidth beside them."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Call", "GpuTimer", "Timing", "back_to_back", "bandwidth", "in_turns"]

Call = Callable[[], object]
_FLUSH_BYTES = 2**28  # more than twice the L2 cache of any card
_MAX_FLUSHES = 200


@dataclass(frozen=True)
class Timing:
    """What was measured of one call."""

    ms: list[float]  # of each run
    host_us: float | None = None  # median time until the call returned; GPU only
    wall_ms: float | None = None  # median time until an idle GPU was done with it; GPU only

    def columns(self) -> dict[str, float | None]:
        """The columns of a row: median, second and eighth decile, minimum."""
        low = high = self.ms[0]
        if len(self.ms) > 1:
            deciles = statistics.quantiles(self.ms, n=10, method="inclusive")
            low, high = deciles[1], deciles[7]
        return {
            "p50_ms": statistics.median(self.ms), "p20_ms": low, "p80_ms": high,
            "min_ms": min(self.ms), "host_us": self.host_us, "wall_ms": self.wall_ms,
        }  # fmt: skip


def in_turns(calls: Mapping[str, Call], repeats: int) -> dict[str, Timing]:
    """CPU times; the calls take turns, so none finds its data in a cache and all see one load."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):  # the first two warm up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: Timing(taken) for name, taken in times.items()}


def back_to_back(call: Call, repeats: int) -> Timing:
    """GPU times between events around calls that follow each other without waiting."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return Timing([begin.elapsed_time(end) for begin, end in itertools.pairwise(events)])


class GpuTimer:
    """Times calls on one CUDA device.

    `ms` is the time between two events around the call. Before each, the L2 cache is emptied: a
    large buffer is written, then read, so that the call does not pay for writing it back. That is
    repeated until the GPU is busy for longer than the host needs to launch the call; so `ms` has
    no gaps in which the GPU waits for the host. What the host costs is in `host_us` and `wall_ms`.

    Args:
        device: where everything happens; it becomes the current one.
    """

    def __init__(self, device: str = "cuda") -> None:
        if torch.device(device).index is not None:
            torch.cuda.set_device(device)
        self._buffer = torch.zeros(_FLUSH_BYTES // 4, dtype=torch.float32, device=device)
        self._flush()  # loads its kernels
        self._flush_ms = statistics.median(self._events(self._flush, 5))

    def measure(self, call: Call, repeats: int, prepare: Call = lambda: None) -> Timing:
        """Warm up, then measure the host and the GPU, each `repeats` times.

        Args:
            call: what is measured.
            repeats: how often.
            prepare: run before every call and not measured.
        """
        for _ in range(3):
            prepare()
            call()
        host, wall = [], []
        for _ in range(repeats):
            prepare()
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            returned = time.perf_counter()
            torch.cuda.synchronize()
            host.append(1e6 * (returned - start))
            wall.append(1e3 * (time.perf_counter() - start))
        host_us = statistics.median(host)
        flushes = math.ceil(1.5e-3 * host_us / self._flush_ms)

        def fill_the_queue() -> None:
            prepare()
            for _ in range(min(max(flushes, 1), _MAX_FLUSHES)):
                self._flush()

        return Timing(self._events(call, repeats, fill_the_queue), host_us, statistics.median(wall))

    def _flush(self) -> None:
        self._buffer.zero_()
        self._buffer.sum()

    @staticmethod
    def _events(call: Call, repeats: int, before: Call = lambda: None) -> list[float]:
        pairs = []
        for _ in range(repeats):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            before()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


def bandwidth(timer: GpuTimer | None, device: str, repeats: int = 15) -> dict[str, float]:
    """GB/s of a large float32 copy and of an in-place addition, reads and writes counted.

    Args:
        timer: None on the CPU, where a copy is slower than its count says: the CPU also reads the
            lines that are going to be overwritten.
        device: where to measure.
        repeats: how often; the median counts.

    Returns:
        copy_gb_per_s, in_place_gb_per_s, and roof_gb_per_s, what shares are given of: the copy on
        a GPU, the larger of the two on a CPU.
    """
    source = torch.ones(2**26 if timer is None else 2**28, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {
        "copy_gb_per_s": lambda: target.copy_(source),
        "in_place_gb_per_s": lambda: source.add_(1.0),
    }
    if timer is None:
        times = in_turns(calls, repeats)
    else:
        times = {name: timer.measure(call, repeats) for name, call in calls.items()}
    moved = 2 * source.numel() * source.element_size()
    found = {name: moved / statistics.median(timing.ms) / 1e6 for name, timing in times.items()}
    found["roof_gb_per_s"] = max(found.values()) if timer is None else found["copy_gb_per_s"]
    return {name: round(value, 1) for name, value in found.items()}
