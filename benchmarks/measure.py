"""How the benchmarks measure: the machine, its copy bandwidth, times and peak memory."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["copy_bandwidth", "machine", "peak_memory", "time_ms", "write_results"]

T = TypeVar("T")
_ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """What a row depends on besides the code: hardware, threads, versions, commit, load."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def time_ms(run: Callable[[], object], min_runs: int, min_seconds: float = 0.0) -> list[float]:
    """Times of at least `min_runs` runs and `min_seconds`. The caller has run it once before."""
    times: list[float] = []
    while len(times) < min_runs or sum(times) < 1e3 * min_seconds:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def copy_bandwidth(numel: int = 32_000_000) -> float:
    """GB/s of a float32 `copy_` between two tensors, reads and writes counted; best of 20."""
    source, target = torch.ones(numel), torch.zeros(numel)
    best = min(time_ms(lambda: target.copy_(source), min_runs=20))
    return 2 * 4 * numel / best / 1e6


def peak_memory(run: Callable[[], T]) -> tuple[T, int | None]:
    """The result of `run`, and by how many bytes resident memory peaked above what it was.

    None where the system does not say. The allocator keeps some MB of what was freed before, which
    are not counted: the figure means something from some tens of MB.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc: give back what earlier runs have freed
    except AttributeError:
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = _status("VmHWM")
    except OSError:
        return run(), None
    return run(), _status("VmHWM") - before


def write_results(path: str | os.PathLike[str], result: dict[str, Any]) -> None:
    """Write a result file: the machine, then one line per row."""
    rows = ",\n".join("    " + json.dumps(row) for row in result["rows"])
    head = {key: value for key, value in result.items() if key != "rows"}
    text = json.dumps(head, indent=2)[:-2] + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=_ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
