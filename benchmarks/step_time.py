"""Time of one optimizer step: MaskedAdamW beside what people run today, in one process.

    python benchmarks/step_time.py                               # CIFAR-10 DDPM, fp32, CPU
    python benchmarks/step_time.py --device cuda --preset sd15 sdxl --dtype float32 bfloat16
    python benchmarks/step_time.py --preset tiny --densities 0.5 --repeats 5 --json out.json

Every row of ours is first checked: three steps on that very input must agree with the reference,
and every frozen entry must keep its bits. A row that fails is printed without a time, and the exit
code is 1. A baseline that does not fit in memory gets a row that says so.

Gradients are new tensors at every call on a GPU, as after a backward pass.

Masks: "random" makes every entry salient with equal probability; "heavy" multiplies random
scores by a log-normal scale per row (sigma 2) and takes the global top-k, which touches about as
few cache lines as real saliency does.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from bench import Builder, Case, Setup, command, make_parser
from inputs import PRESETS, make_input
from providers import baselines, checked_ours


@dataclass(frozen=True)
class StepCase(Case):
    """One mask on one network."""

    benchmark = "step_time"
    roof = "roof_gb_per_s"

    mask: str = "heavy"  # none, random or heavy
    density: float = 0.1
    dtype: str = "float32"
    beta1: float = 0.9

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Ours on every backend, and what people run today."""
        dtype = getattr(torch, self.dtype)
        made = make_input(self.preset, dtype, self.mask, self.density, setup.device, self.beta1)
        ours: dict[str, Builder] = {
            f"pecker_fast[{name}]": partial(checked_ours, made, name) for name in setup.backends
        }
        return ours | baselines(made)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=15)
    dtypes = ["float32", "bfloat16", "float16"]
    masks = ["random", "heavy"]
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["ddpm_cifar10"])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.5, 0.1, 0.01])
    parser.add_argument("--masks", nargs="*", choices=masks, default=masks)
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=["float32"])
    parser.add_argument("--beta1", type=float, default=0.9, help="0: as published for SFD")
    options = parser.parse_args(argv)
    chosen = [("none", 1.0), *itertools.product(options.masks, options.densities)]
    cases = [
        StepCase(preset, mask, density, dtype, options.beta1)
        for preset in options.preset
        for dtype in options.dtype
        for mask, density in chosen
    ]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
