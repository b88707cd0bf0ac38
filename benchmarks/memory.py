"""Peak memory of a training iteration, by part: as published, and with what saves memory.

    python benchmarks/memory.py                                 # sd15 and sdxl, computed
    python benchmarks/memory.py --device cuda --preset sd15     # and measured beside it
    python benchmarks/memory.py --preset tiny --json out.json

Computed figures come from shapes: the trainer's own iteration (or the published loop's) runs on
fake tensors, and every storage is followed from its making to its end (see live_memory.py). The
optimizers take no step there, but have the state that they would have. The blocks are torch's:
fused ones, which save less, have measured figures only.

Measured figures are what torch's allocator had handed out at the peak of a few iterations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from bench import Builder, Case, Provider, Setup, command, make_parser
from fake_iteration import compute
from networks import NETWORKS
from rows import Row
from variants import ONE_SET, Problem, Variant

__all__ = ["LAYOUTS", "MemoryCase", "main"]

_RELEASE = {"optimizer.release_grads": True}
_MICRO = {"micro_batch": 1}
_BF16 = {"precision": "bf16"}
_LEAST = {**ONE_SET, **_BF16, **_RELEASE, **_MICRO}
_RECOMPUTED = {**_LEAST, "recompute": True}


LAYOUTS: tuple[Variant, ...] = (
    Variant("as published", trainer=False, masked_optimizer=False),
    Variant("three networks"),
    Variant("three networks, released gradients", settings=_RELEASE),
    Variant("three networks, one image at a time", settings=_MICRO),
    Variant("three networks, bf16", settings=_BF16),
    Variant("three networks, bf16, both", settings={**_BF16, **_RELEASE, **_MICRO}),
    Variant("one set of weights", settings=ONE_SET),
    Variant("one set, released gradients", settings={**ONE_SET, **_RELEASE}),
    Variant("one set, released, one image", settings={**ONE_SET, **_RELEASE, **_MICRO}),
    Variant("one set, bf16", settings={**ONE_SET, **_BF16}),
    Variant("one set, bf16, released", settings={**ONE_SET, **_BF16, **_RELEASE}),
    Variant("one set, bf16, released, one image", settings=_LEAST),
    Variant("the same, recomputed", settings=_RECOMPUTED),
    Variant(
        "the same, fused blocks, CUDA graph",
        settings={**_RECOMPUTED, "accelerate": True, "graph": "auto"},
    ),
)
_MEASURED_ITERATIONS = 5  # with a CUDA graph the last ones are replays


def measure(problem: Problem, layout: Variant) -> Row:
    """What torch's allocator hands out on the device."""
    torch.cuda.reset_peak_memory_stats(problem.device)
    before = torch.cuda.memory_allocated(problem.device)
    try:
        step, _ = problem.start(layout)
        start = torch.cuda.memory_allocated(problem.device) - before
        for _ in range(_MEASURED_ITERATIONS):
            step()
        torch.cuda.synchronize(problem.device)
    except torch.OutOfMemoryError as error:
        return {"skipped": ". ".join(str(error).split(". ")[:2])}
    peak = torch.cuda.max_memory_allocated(problem.device) - before
    return {"measured_start_bytes": start, "measured_peak_bytes": peak}


@dataclass(frozen=True)
class MemoryCase(Case):
    """One network: B remain images, and as many forget images."""

    benchmark = "memory"

    batch_size: int = 1
    density: float = 0.1

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Every layout; there is nothing to time."""
        problem = None
        if torch.device(setup.device).type == "cuda":
            problem = Problem(self.preset, self.batch_size, self.density, setup.device)
        return {layout.name: partial(self._build, layout, problem) for layout in LAYOUTS}

    def _build(self, layout: Variant, problem: Problem | None) -> Provider:
        published = NETWORKS[self.preset].published_precision
        row: Row = {
            "precision": layout.settings.get("precision", published),
            "settings": dict(layout.settings),
        }
        if not layout.settings.get("accelerate"):
            computed = compute(self.preset, self.batch_size, self.density, layout)
            row |= {"computed_peak_bytes": computed.peak_bytes, "parts": computed.at_peak}
        if problem is None and "parts" not in row:
            row["skipped"] = "measured on a CUDA device only"
        if problem is not None:
            row |= measure(problem, layout)
        return Provider(None, columns=row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["sd15", "sdxl"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args(argv)
    cases = [MemoryCase(preset, options.batch, options.density) for preset in options.preset]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
