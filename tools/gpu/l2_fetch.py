"""Does a smaller L2 fetch granularity lower what a sparse step moves? It is a limit of the process.

    python tools/gpu/l2_fetch.py --device cuda --json l2.json

Rows are steps of SD 1.5 under masks, by bytes that are fetched at once: as found, 32, 64, 128. The
floor is of 64-byte lines. Nothing in the package sets the limit.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import torch
from bench import Builder, Case, Provider, Setup, command, make_parser
from inputs import StepInput, bytes_floor, make_input
from providers import ours
from timing import Timing

_GRANULARITY = 5  # cudaLimitMaxL2FetchGranularity
_AS_FOUND = 0


def _limit(wanted: int = _AS_FOUND) -> int:
    """Set the limit, if one is wanted; what it is then."""
    driver, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t()
    if wanted != _AS_FOUND and driver.cuCtxSetLimit(_GRANULARITY, ctypes.c_size_t(wanted)):
        raise RuntimeError(f"the driver refuses an L2 fetch granularity of {wanted} bytes")
    driver.cuCtxGetLimit(ctypes.byref(value), _GRANULARITY)
    return value.value


@dataclass(frozen=True)
class FetchCase(Case):
    """One mask, every backend at every granularity."""

    benchmark = "l2_fetch"
    roof = "roof_gb_per_s"

    mask: str
    density: float

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Ours, not checked anew: step_time does that."""
        on_gpu = setup.timer is not None
        made = make_input(self.preset, torch.float32, self.mask, self.density, setup.device)
        return {
            f"{name}, {wanted or 'as found'}": partial(_build, made, name, wanted, on_gpu)
            for name in setup.backends
            for wanted in ((_AS_FOUND, 32, 64, 128) if on_gpu else (_AS_FOUND,))
        }

    def measure(self, setup: Setup, provider: Provider) -> Timing:
        """Under the provider's limit; the one before comes back."""
        before, wanted = _limit(), provider.columns["granularity"]
        provider.columns["granularity_was"] = _limit(wanted)
        try:
            return super().measure(setup, provider)
        finally:
            _limit(before)


def _build(made: StepInput, name: str, wanted: int, on_gpu: bool) -> Provider:
    columns = {"granularity": wanted, "bytes_moved": bytes_floor(made)}
    prepare = made.fresh_grads if on_gpu else lambda: None
    return Provider(ours(made, name).step, None, columns, prepare)


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__, repeats=10, device="cuda").parse_args(argv)
    preset = "sd15" if options.device.startswith("cuda") else "tiny"
    masks = (("random", 0.1), ("random", 0.01), ("heavy", 0.1), ("heavy", 0.01), ("none", 1.0))
    return command(options, [FetchCase(preset, *mask) for mask in masks])


if __name__ == "__main__":
    sys.exit(main())
