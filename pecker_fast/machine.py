"""What a measurement ran on: processor, threads, versions. For reports and `pecker-fast info`."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pecker_fast.errors import PeckerError

__all__ = [
    "asked_bytes", "free_bytes", "machine_facts", "out_of_memory", "resident_bytes", "usable_cores",
    "usable_device", "versions",
]  # fmt: skip

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_PACKAGES = (
    "pecker-fast", "torch", "diffusers", "transformers", "numpy", "safetensors", "triton",
    "onnxruntime", "torchvision", "torch-fidelity",
)  # fmt: skip


def machine_facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads and the device that a run used, as plain types."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": str(device),
        "device_name": name,
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result; missing ones left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name, made the current one if it is a CUDA device.

    Args:
        device: auto (a CUDA device if there is one), cpu, cuda (in a process that torchrun has
            started the one of its own) or cuda:N.

    Raises:
        PeckerError: no such device on this machine.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise PeckerError(
            f"--device {name}: unknown device; give auto, cpu, cuda or cuda:N"
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise PeckerError(
            f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; "
            "use --device cpu"
        )
    if found.type not in ("cpu", "cuda"):
        raise PeckerError(f"--device {name}: only cpu and cuda are supported")
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


def out_of_memory(error: BaseException) -> str | None:
    """How much memory was asked for in vain, and how much there is.

    Args:
        error: what torch, numpy or Python raised.

    Returns:
        One line; None where it says something else.
    """
    said = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        there = re.search(r"capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", said)
        place = f" of the GPU's {there[1]}, {there[2]} free" if there else " on the GPU"
    elif isinstance(error, MemoryError) or "can't allocate memory" in said:
        total, free = _memory("MemTotal"), _memory("MemAvailable")
        place = ""
        if total is not None and free is not None:
            place = f" of the machine's {total / _GIB:,.1f} GiB, {free / _GIB:,.1f} GiB free"
    else:
        return None
    asked = asked_bytes(error)
    return f"out of memory: {f'{asked / _GIB:,.1f} GiB' if asked else 'more'} asked for{place}"


def asked_bytes(error: BaseException) -> int | None:
    """The allocation that failed, as the error words it; None where it does not say."""
    found = re.search(r"allocate ([\d.]+) (bytes|KiB|MiB|GiB|TiB|PiB)", str(error))
    if found is None:
        return None
    power = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB").index(found[2])
    return int(float(found[1]) * 1024**power)


def free_bytes() -> int | None:
    """Memory still to be had: of the current GPU where one is in use, else the machine's."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.mem_get_info()[0]
    found = [size for size in (_memory("MemAvailable"), _left_to_container()) if size is not None]
    return min(found, default=None)


def _left_to_container() -> int | None:
    """Of the memory that a container may use; None without such a limit."""
    most, used = _of_container("memory.max"), _of_container("memory.current")
    if most in ("", "max") or not used:
        return None
    cached = re.search(r"^inactive_file (\d+)$", _of_container("memory.stat"), re.MULTILINE)
    return max(
        0, int(most) - int(used) + (int(cached[1]) if cached else 0)
    )  # what is cached can go


def resident_bytes(*, peak: bool = False) -> int | None:
    """What this process holds in memory, or held at most; None where the system is not Linux."""
    return _memory("VmHWM" if peak else "VmRSS", "/proc/self/status")


def _memory(key: str, file: str = "/proc/meminfo") -> int | None:
    """A line of such a file in bytes; None where the system is not Linux."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def usable_cores() -> int:
    """Cores this process may use: its CPU affinity, or less where a container sets a quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, _quota() or cores)


def _quota() -> int | None:
    """Whole cores of the CPU quota (docker --cpus, Kubernetes limits); None without one."""
    quota, _, period = _of_container("cpu.max").partition(" ")
    return None if quota in ("", "max") else max(1, int(quota) // int(period))


def _of_container(file: str) -> str:
    """What stands in a file of cgroup v2; nothing where there is none."""
    try:
        return (_CGROUP / file).read_text().strip()
    except OSError:
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
