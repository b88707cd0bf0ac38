"""Everything that is to be known about a GPU, in one run: benchmarks/results/<card>.json.

    python benchmarks/gpu.py                      # at most about half an hour on an H100
    python benchmarks/gpu.py --list               # the cases, most important first
    python benchmarks/gpu.py --only sdxl --json sdxl.json

The file is written after every case, so a run that is cut off leaves what it has measured. No case
is started after --minutes; "complete" in the file says whether all were measured. The exit code is
1 if a result was wrong or a case failed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import iteration
import memory
import step_time
import topk
import torch
from inputs import make_case
from measure import RESULTS, slug, write_results
from presets import shapes
from variants import VARIANTS, Problem

from pecker_fast.errors import PeckerError

__all__ = ["CASES", "IterationCase", "MemoryCase", "StepCase", "TopkCase", "main"]

Row = dict[str, Any]


@dataclass(frozen=True)
class StepCase:
    """One mask of step_time.py."""

    preset: str
    mask: str = "heavy"
    density: float = 0.1
    dtype: str = "float32"
    beta1: float = 0.9
    one_tensor: bool = False

    def __str__(self) -> str:
        mask = self.mask if self.mask == "none" else f"{self.mask} {self.density:g}"
        single = ", and in one tensor" if self.one_tensor else ""
        return f"step_time {self.preset} {self.dtype} {mask} beta1 {self.beta1:g}{single}"

    def run(self, setup: step_time.Setup) -> list[Row]:
        """The rows of every provider."""
        dtype = getattr(torch, self.dtype)
        inputs = (self.preset, dtype, self.mask, self.density, setup.device, self.beta1)
        rows = step_time.run_case(setup, make_case(*inputs), self.one_tensor)
        return [{"benchmark": "step_time", **asdict(row)} for row in rows]


@dataclass(frozen=True)
class TopkCase:
    """One density of topk.py."""

    preset: str
    scores: str = "heavy"
    density: float = 0.1

    def __str__(self) -> str:
        return f"topk {self.preset} {self.scores} {self.density:g}"

    def run(self, setup: step_time.Setup) -> list[Row]:
        """The rows of every provider."""
        named = shapes(self.preset)
        about = {
            "benchmark": "topk",
            "preset": self.preset,
            "numel": sum(shape.numel() for shape in named.values()),
            "tensors": len(named),
            "scores": self.scores,
        }
        rows = topk.measure(
            topk.make_scores(self.preset, self.scores, setup.device),
            self.density,
            topk.make_providers(setup.device, list(setup.backends)),
            rounds=min(setup.repeats, 10),
            seconds=0.0,
            copy_gb_per_s=setup.roof_gb_per_s,
            timer=setup.timer,
        )
        return [about | row for row in rows]


@dataclass(frozen=True)
class IterationCase:
    """One network and batch size of iteration.py, under every variant."""

    preset: str
    batch_size: int
    density: float = 0.1

    def __str__(self) -> str:
        return f"iteration {self.preset} batch {self.batch_size} density {self.density:g}"

    def run(self, setup: step_time.Setup) -> list[Row]:
        """The rows of every variant."""
        problem = Problem(self.preset, self.batch_size, self.density, setup.device)
        rows = iteration.run_problem(problem, VARIANTS, setup.repeats)
        iteration.print_rows(rows)
        return [{"benchmark": "iteration", **asdict(row)} for row in rows]


@dataclass(frozen=True)
class MemoryCase:
    """One network of memory.py, batch 1, under every layout."""

    preset: str
    density: float = 0.1

    def __str__(self) -> str:
        return f"memory {self.preset} density {self.density:g}"

    def run(self, setup: step_time.Setup) -> list[Row]:
        """The rows of every layout."""
        rows = []
        for row in memory.rows_of(self.preset, 1, self.density, setup.device):
            memory.print_row(row)
            rows.append({"benchmark": "memory", **asdict(row)})
        return rows


Case = StepCase | TopkCase | IterationCase | MemoryCase

# The most important first: a run may be cut off.
CASES: tuple[Case, ...] = (
    StepCase("sd15"),
    StepCase("sd15", "random"),
    StepCase("sd15", "none", 1.0),
    TopkCase("sd15"),
    IterationCase("cifar10", 128),
    IterationCase("sd15", 1),
    MemoryCase("sd15"),
    StepCase("ddpm_cifar10", one_tensor=True),
    StepCase("sd15", "heavy", 0.01),
    StepCase("sd15", "random", 0.5),
    StepCase("sd15", "heavy", 0.5),
    StepCase("sd15", "random", 0.01),
    StepCase("ddpm_cifar10", "random", one_tensor=True),
    StepCase("ddpm_cifar10", "none", 1.0, one_tensor=True),
    StepCase("sd15", dtype="bfloat16"),
    StepCase("sd15", "none", 1.0, dtype="bfloat16"),
    TopkCase("sd15", "normal"),
    TopkCase("sd15", "heavy", 0.5),
    TopkCase("sd15", "heavy", 0.01),
    StepCase("sd15", "heavy", 0.5, beta1=0.0),  # as published for SFD
    StepCase("sdxl"),
    StepCase("sdxl", "none", 1.0),
    StepCase("ddpm_stl10", one_tensor=True),
    StepCase("ddpm_stl10", "none", 1.0),
    StepCase("ddpm_cifar10", "heavy", 0.5, one_tensor=True),
    StepCase("ddpm_cifar10", "heavy", 0.01, one_tensor=True),
    StepCase("sd15", "random", dtype="bfloat16"),
    StepCase("sd15", dtype="float16"),
    StepCase("ddpm_cifar10", dtype="bfloat16"),
    TopkCase("ddpm_cifar10"),
    StepCase("sdxl", "random"),
    IterationCase("sd15", 4),
    IterationCase("stl10", 64),
    MemoryCase("sdxl"),
)


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", nargs="+", help="default: every one for the device")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose line contains this")
    parser.add_argument("--commit", help="of the sources, where git cannot tell")
    parser.add_argument("--json", type=Path, help=f"default: {RESULTS}/<card>.json")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    arguments = parser.parse_args(argv)
    begin = time.monotonic()
    chosen = [case for case in cases if arguments.only in str(case)]
    if arguments.list or not chosen:
        print(*(chosen or cases), sep="\n")
        return 0 if chosen else 2
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device", file=sys.stderr)
        return 2
    try:
        setup, about = step_time.start(arguments.device, arguments.backend, arguments.repeats)
    except PeckerError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    if arguments.commit:
        about["commit"] = arguments.commit
    path = arguments.json or RESULTS / f"{slug(about['device'])}.json"
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)

    result: dict[str, Any] = {"machine": about, "complete": False, "failures": [], "rows": []}
    for number, case in enumerate(chosen):
        elapsed = time.monotonic() - begin
        if elapsed > 60 * arguments.minutes:
            print(f"out of time: {len(chosen) - number} of {len(chosen)} cases not started")
            break
        print(f"[{elapsed:4.0f} s] {case}", flush=True)
        try:
            rows = case.run(setup)
        except Exception as error:  # the other cases are worth having; the exit code tells
            failure = f"{case}: {type(error).__name__}: {error}".splitlines()[0]
            result["failures"].append(failure)
            print(f"  FAILED {failure}", flush=True)
        else:
            result["rows"] += rows
            _print_rows(rows)
        result["complete"] = number + 1 == len(chosen) == len(cases)
        write_results(path, result)
        gc.collect()
    print(f"[{time.monotonic() - begin:4.0f} s] {path}")
    wrong = any(row.get("match") in (False, "WRONG") for row in result["rows"])
    return 1 if wrong or result["failures"] else 0


def _print_rows(rows: Sequence[Row]) -> None:
    """What one wants to see while it runs of steps and top-k; the others have printed theirs."""
    for row in rows:
        if row["benchmark"] not in ("step_time", "topk"):
            continue
        milliseconds = row.get("p50_ms", row.get("ms_median"))
        if milliseconds is None:
            reason = row.get("skipped") or "its result is wrong"
            print(f"  {row['provider']:26} {reason}", flush=True)
            continue
        line = f"  {row['provider']:26} {row.get('layout', ''):10} {milliseconds:10.4f} ms"
        line += f" {row['floor_share']:6.1%} of the floor"
        if row.get("host_us") is not None:
            line += f", host {row['host_us']:.0f} us, wall {row['wall_ms']:.3f} ms"
        if row.get("times_one_tensor") is not None:
            line += f", {row['times_one_tensor']:.2f} of one tensor"
        for field in ("vs_torch_fused", "vs_gradmask", "vs_restore"):
            if row.get(field) is not None:
                line += f", {row[field]:.2f} x {field[3:]}"
        for other, factor in row.get("speedup", {}).items():
            line += f", {factor} x {other}"
        if row.get("peak_extra_bytes") is not None:
            line += f", {row['peak_extra_bytes'] / 2**20:.0f} MiB"
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
