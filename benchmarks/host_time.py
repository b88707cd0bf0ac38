"""What a step costs the host: everything but the launches, which do nothing here.

    python benchmarks/host_time.py                  # as many tensors as CIFAR-10's U-Net, SD 1.5's
    python benchmarks/host_time.py --tensors 329

CPU time of the CUDA backend on small tensors, the fastest and the median of many steps, with new
gradients at each as after a backward pass. A card adds its driver's launches.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from pecker_fast import MaskedAdamW, backends


class _NoLaunches:
    """The compiled module, whose functions return at once."""

    def __init__(self, module: Any) -> None:
        for name in dir(module):
            value = getattr(module, name)
            setattr(self, name, (lambda *args: None) if callable(value) else value)


def step_seconds(tensors: int, steps: int = 300) -> list[float]:
    """CPU time of each step of so many masked parameters."""
    kernels = backends.select("cuda", "cpu").kernels  # type: ignore[attr-defined]
    params = [torch.nn.Parameter(torch.randn(64)) for _ in range(tensors)]
    masks = {param: torch.rand(64) < 0.3 for param in params}
    seconds = []
    with mock.patch.object(kernels, "_module", _NoLaunches(kernels._module)):
        optimizer = MaskedAdamW(params, mask=masks, backend="cuda")
        for _ in range(steps):
            for param in params:
                param.grad = torch.randn(64)
            start = time.thread_time_ns()
            optimizer.step()
            seconds.append((time.thread_time_ns() - start) / 1e9)
    return seconds[10:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tensors", type=int, nargs="+", default=[329, 686])
    # The module loads without a driver; this lets its backend take tensors of the CPU.
    module = importlib.import_module("pecker_fast._cuda")
    os.environ.setdefault("PECKER_FAST_CUDA_ON_HOST", str(module.__file__))
    for tensors in parser.parse_args(argv).tensors:
        seconds = step_seconds(tensors)
        fastest, median = min(seconds) * 1e6, statistics.median(seconds) * 1e6
        print(f"{tensors} tensors: {fastest:.0f} us, median {median:.0f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
