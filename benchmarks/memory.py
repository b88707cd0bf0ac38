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

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from fake_iteration import compute
from measure import machine, write_results
from networks import NETWORKS
from variants import Problem, Variant

__all__ = ["LAYOUTS", "Row", "main", "print_row", "rows_of"]

_RELEASE = {"optimizer.release_grads": True}
_MICRO = {"micro_batch": 1}
_ONE_SET = {"mask.apply": "both", "mask.share_weights": True}
_BF16 = {"precision": "bf16"}
_FUSED = {"accelerate": True, "graph": "auto"}
_RECOMPUTE = {"recompute": True}

LAYOUTS: tuple[Variant, ...] = (
    Variant("as published", trainer=False, masked_optimizer=False),
    Variant("three networks"),
    Variant("three networks, released gradients", settings=_RELEASE),
    Variant("three networks, one image at a time", settings=_MICRO),
    Variant("three networks, bf16", settings=_BF16),
    Variant("three networks, bf16, both", settings={**_BF16, **_RELEASE, **_MICRO}),
    Variant("one set of weights", settings=_ONE_SET),
    Variant("one set, released gradients", settings={**_ONE_SET, **_RELEASE}),
    Variant("one set, released, one image", settings={**_ONE_SET, **_RELEASE, **_MICRO}),
    Variant("one set, bf16", settings={**_ONE_SET, **_BF16}),
    Variant("one set, bf16, released", settings={**_ONE_SET, **_BF16, **_RELEASE}),
    Variant(
        "one set, bf16, released, one image",
        settings={**_ONE_SET, **_BF16, **_RELEASE, **_MICRO},
    ),
    Variant(
        "the same, recomputed",
        settings={**_ONE_SET, **_BF16, **_RELEASE, **_MICRO, **_RECOMPUTE},
    ),
    Variant(
        "the same, fused blocks, CUDA graph",
        settings={**_ONE_SET, **_BF16, **_RELEASE, **_MICRO, **_RECOMPUTE, **_FUSED},
    ),
)


@dataclass
class Row:
    """One layout of one network."""

    preset: str
    batch_size: int  # remain images, and as many forget images
    density: float
    layout: str
    precision: str
    settings: dict[str, Any]
    computed_peak_bytes: int | None = None
    parts: dict[str, int] = field(default_factory=dict)  # of the computed peak: what was alive
    saved: dict[str, int] = field(default_factory=dict)  # by a pass of the generator, by module
    measured_start_bytes: int | None = None  # after construction
    measured_peak_bytes: int | None = None
    skipped: str | None = None  # why it was not measured


def measure(row: Row, problem: Problem, layout: Variant) -> None:
    """What torch's allocator hands out on the device, in place of `skipped`."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(problem.device)
    before = torch.cuda.memory_allocated(problem.device)
    try:
        running = problem.start(layout)
        row.measured_start_bytes = torch.cuda.memory_allocated(problem.device) - before
        for _ in range(_MEASURED_ITERATIONS):
            running.step()
        torch.cuda.synchronize(problem.device)
    except torch.OutOfMemoryError as error:
        row.skipped = ". ".join(str(error).split(". ")[:2])
        return
    row.measured_peak_bytes = torch.cuda.max_memory_allocated(problem.device) - before


_MEASURED_ITERATIONS = 5  # with a CUDA graph the last ones are replays


def rows_of(
    preset: str,
    batch_size: int,
    density: float,
    device: str,
    layouts: Sequence[Variant] = LAYOUTS,
) -> Iterator[Row]:
    """Layout by layout, computed and, on a CUDA device, measured."""
    on_gpu = torch.device(device).type == "cuda"
    problem = Problem(preset, batch_size, density, device) if on_gpu else None
    published = NETWORKS[preset].published_precision
    for layout in layouts:
        precision = layout.settings.get("precision", published)
        row = Row(preset, batch_size, density, layout.name, precision, dict(layout.settings))
        if not layout.settings.get("accelerate"):
            computed = compute(preset, batch_size, density, layout)
            row.computed_peak_bytes, row.parts = computed.peak_bytes, computed.at_peak
            row.saved = computed.saved
        if problem is None:
            row.skipped = "measured on a CUDA device only"
        else:
            measure(row, problem, layout)
        yield row


def print_row(row: Row) -> None:
    """Peaks, then parts of the computed one."""
    line = f"  {row.layout:36} {row.precision:8}"
    if row.computed_peak_bytes is not None:
        line += f" computed {_gib(row.computed_peak_bytes)}"
    if row.measured_peak_bytes is not None:
        line += f" measured {_gib(row.measured_peak_bytes)}"
        line += f" (after construction {_gib(row.measured_start_bytes)})"
    elif row.computed_peak_bytes is None:
        line += f" {row.skipped}"
    print(line)
    for title, sizes in (("at the peak", row.parts), ("saved by a pass", row.saved)):
        if sizes:
            text = ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in sizes.items())
            print(f"      {title}: {text}", flush=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["sd15", "sdxl"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args(argv)
    about = machine(arguments.device)
    rows: list[Row] = []
    for preset in arguments.preset:
        print(f"{preset}, batch {arguments.batch}, density {arguments.density:g}", flush=True)
        for row in rows_of(preset, arguments.batch, arguments.density, arguments.device):
            print_row(row)
            rows.append(row)
            if arguments.json:  # after every row: the whole may take long
                result = {"machine": about, "rows": [asdict(row) for row in rows]}
                write_results(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
