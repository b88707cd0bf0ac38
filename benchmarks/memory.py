"""Peak memory of a training iteration, by part, with what saves memory.

    python benchmarks/memory.py                     # sd15 and sdxl, batch 1, density 0.1
    python benchmarks/memory.py --preset tiny --batch 2

Figures are computed from shapes: pecker_fast/runs/memory_model.py, what `erase --dry-run` says of a
run. The blocks are torch's, and the original's weights are on the host. What a card hands out is in
the rows of iteration.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from networks import NETWORKS
from torch import nn
from variants import ONE_SET, configuration

from pecker_fast.distill import PeckerTrainer
from pecker_fast.runs.memory_model import model_peak

_BF16 = {"precision": "bf16"}
_LEAST = {**_BF16, "optimizer.release_grads": True, "micro_batch": 1}
_RECOMPUTED = {**ONE_SET, **_LEAST, "recompute": True}
# Name -> settings that differ from the published loop's.
LAYOUTS: dict[str, Mapping[str, Any]] = {
    "three networks, fp32": {},
    "three networks, bf16": _BF16,
    "three networks, bf16, released gradients, one image at a time": _LEAST,
    "one set of weights, bf16": {**ONE_SET, **_BF16},
    "one set, bf16, released gradients, one image at a time": {**ONE_SET, **_LEAST},
    "the same, recomputed": _RECOMPUTED,
    # Diffusers' own networks alone can.
    "the same, blocks too": {**_RECOMPUTED, "recompute_blocks": True},
}
_ORIGINAL = "networks as they were given"


def compute(preset: str, batch_size: int, density: float, layout: str) -> dict[str, int]:
    """What is alive at the peak of the first iteration, on fake tensors: kind -> bytes."""
    network = NETWORKS[preset]
    plain = {"optimizer.backend": "reference", "mask.kind": "random"}
    config = configuration(network, batch_size, density, {**LAYOUTS[layout], **plain})
    schedule = network.schedule(config)
    schedule.tables(torch.device("cpu"), torch.float32)  # kept, so they must be real

    def start(shaped: Callable[[nn.Module], nn.Module]) -> Any:
        return PeckerTrainer(network.objective(shaped(network.make()), schedule, config, "cpu"))

    parts = model_peak(start, torch.device("cpu")).parts
    return {kind: size for kind, size in parts.items() if kind != _ORIGINAL}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["sd15", "sdxl"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args(argv)
    for preset in options.preset:
        for layout in LAYOUTS if NETWORKS[preset].prompt_shape else [*LAYOUTS][:-1]:
            parts = compute(preset, options.batch, options.density, layout)
            named = ", ".join(f"{kind} {size / 2**30:.1f}" for kind, size in parts.items())
            peak = sum(parts.values()) / 2**30
            print(f"{preset}, {layout}: {peak:.1f} GiB ({named})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
