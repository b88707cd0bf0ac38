"""What is measured: times on the CPU in turns and on a GPU by events, bandwidth, peak memory."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pecker_fast.machine import machine_facts, versions

T = TypeVar("T")
Call = Callable[[], object]
_FLUSH_BYTES = 2**28  # more than twice the L2 cache of any card
_MAX_FLUSHES = 200


@dataclass(frozen=True)
class Timing:
    """What was measured of one call."""

    ms: list[float]  # of each run
    host_us: float | None = None  # median time until the call returned; GPU only

    def columns(self) -> dict[str, float | None]:
        """The columns of a row: median and minimum."""
        p50 = statistics.median(self.ms)
        return {"p50_ms": p50, "min_ms": min(self.ms), "host_us": self.host_us}


def in_turns(calls: Mapping[str, Call], repeats: int) -> dict[str, Timing]:
    """Times on the CPU by name; calls take turns, so none finds its data in a cache."""
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
    no gaps in which the GPU waits for the host. What the host costs is in `host_us`.

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

        `prepare` is run before every call and not measured.
        """
        host = []
        for _ in range(3 + repeats):  # the first three warm up
            prepare()
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            host.append(1e6 * (time.perf_counter() - start))
        torch.cuda.synchronize()
        host_us = statistics.median(host[3:])
        flushes = math.ceil(1.5e-3 * host_us / self._flush_ms)

        def fill_the_queue() -> None:
            prepare()
            for _ in range(min(max(flushes, 1), _MAX_FLUSHES)):
                self._flush()

        return Timing(self._events(call, repeats, fill_the_queue), host_us)

    def _flush(self) -> None:
        self._buffer.zero_()
        self._buffer.sum()

    @staticmethod
    def _events(call: Call, repeats: int, before: Call = lambda: None) -> list[float]:
        pairs = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


def bandwidth(timer: GpuTimer | None, device: str) -> dict[str, float]:
    """GB/s of a large float32 copy and of an in-place addition, reads and writes counted.

    Medians. On the CPU (no timer) a copy is slower than its count says: it also reads the lines
    that are going to be overwritten.

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
        times = in_turns(calls, 15)
    else:
        times = {name: timer.measure(call, 15) for name, call in calls.items()}
    moved = 2 * source.numel() * source.element_size()
    found = {name: moved / statistics.median(timing.ms) / 1e6 for name, timing in times.items()}
    found["roof_gb_per_s"] = max(found.values()) if timer is None else found["copy_gb_per_s"]
    return {name: round(value, 1) for name, value in found.items()}


def peak_memory(run: Callable[[], T], device: str) -> tuple[T, int | None]:
    """The result of `run`, and by how many bytes memory peaked above what it was, result included.

    It is what torch's allocator handed out on a CUDA device; None on others.
    """
    if torch.device(device).type != "cuda":
        return run(), None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on besides the code: hardware, threads, versions, commit, load.

    Returns:
        Plain types. "device" is the processor or the card; a card adds its driver and the versions
        of CUDA and Triton.
    """
    facts = machine_facts(device)
    about = {**facts, **versions(), "device": facts["device_name"], "cpu": facts["processor"]}
    about["load_average"] = round(os.getloadavg()[0], 2)
    about["commit"] = _first_line("git", "describe", "--always", "--dirty", "--exclude", "*")
    about["date"] = time.strftime("%Y-%m-%d")
    if torch.device(device).type == "cuda":
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        about |= {"driver": _first_line(*query), "cuda": torch.version.cuda}
    return about


def _first_line(*command: str) -> str:
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.partition("\n")[0].strip()
