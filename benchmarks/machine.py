"""The machine that a benchmark runs on, and the peak of its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["machine", "peak_memory"]

T = TypeVar("T")


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a row depends on besides the code: hardware, threads, versions, commit, load.

    Args:
        device: "cpu" or a CUDA device.

    Returns:
        Plain types. "device" is the processor or the card; a card adds its driver and the versions
        of CUDA and Triton.
    """
    about: dict[str, Any] = {"device": _cpu_model()}
    if torch.device(device).type == "cuda":
        about = {
            "device": torch.cuda.get_device_name(device),
            "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
            "driver": _first_line(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
            "cuda": torch.version.cuda,
            "triton": _version("triton"),
        }
    return about | {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _first_line("git", "describe", "--always", "--dirty", "--exclude", "*"),
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory(run: Callable[[], T], device: str = "cpu") -> tuple[T, int | None]:
    """The result of `run`, and by how many bytes memory peaked above what it was, result included.

    On a CUDA device: what torch's allocator handed out. On the CPU: resident memory; None where
    the system does not say. The allocator keeps some MB of what was freed before, which are not
    counted: the figure means something from some tens of MB.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
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


def _first_line(*command: str) -> str:
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.partition("\n")[0].strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
