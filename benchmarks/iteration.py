"""Time of one training iteration: as published, with each change alone, and with all of them.

    python benchmarks/iteration.py                                  # the demo's network, on the CPU
    python benchmarks/iteration.py --device cuda --preset cifar10 stl10
    python benchmarks/iteration.py --preset tiny --repeats 2 --json out.json

Every row is checked first (see variants.py); one that fails is printed without a time and the exit
code is 1. A variant that cannot run here has a row that says why. The mask is given, so the time to
find one is in no figure.

On the CPU the variants take turns, so all see the same load. On a GPU one is built, measured and
freed after the other; iterations follow each other without waiting, an event between any two.
"Set-up" is what construction and the first iterations take beyond ordinary ones: on a GPU that is
where kernels are compiled or loaded and the CUDA graph is captured.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Before torch is loaded, as the command line does (figures in pecker_fast/cli.py).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from measure import machine, write_results
from networks import NETWORKS
from profile_kinds import OptimizerClock, shares
from timing import Timing, in_turns
from variants import VARIANTS, Problem, Running, Variant

from pecker_fast.distill.graph import WARM_UP

__all__ = ["Row", "main", "run_problem"]

ITERATIONS_OF_A_RUN = 50_000
_CLOCKED = 3  # iterations in which the optimizers are timed apart
Step = Callable[[], object]


@dataclass
class Row:
    """One variant on one network."""

    preset: str
    batch_size: int  # remain images, and as many forget images
    published_batch: int
    density: float
    variant: str
    precision: str
    settings: dict[str, Any]
    match: bool | None = None  # agrees with the published loop; None: not run
    loss_error: float | None = None
    update_error: float | None = None
    skipped: str | None = None  # why there is no time
    p50_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    min_ms: float | None = None
    vs_published: float | None = None
    vs_published_min: float | None = None  # of the fastest iterations: less moved by other load
    images_per_s: float | None = None
    run_hours: float | None = None  # of 50,000 iterations
    setup_s: float | None = None
    peak_bytes: int | None = None  # GPU only
    optimizer_share: float | None = None  # of the iteration; None where a CUDA graph hides it
    kinds: dict[str, float] = field(default_factory=dict)  # kind of kernel -> share of its time
    notes: list[str] = field(default_factory=list)  # the trainer's, on how it iterates


@dataclass
class _Started:
    """A variant that runs, and what it cost to get there."""

    row: Row
    running: Running
    begun_s: float  # construction and the first iterations
    first: int  # how many those were
    timing: Timing | None = None


def run_problem(problem: Problem, variants: Sequence[Variant], repeats: int) -> list[Row]:
    """Check, then time every variant.

    Args:
        problem: network, batch size, mask and device.
        variants: which; the first is what speed-ups are over.
        repeats: timed iterations of each.
    """
    rows = []
    for variant in variants:
        row = _blank(problem, variant)
        rows.append(row)
        row.skipped = problem.obstacle(variant)
        if row.skipped is None:
            _check(problem, variant, row)
        _free(problem.device)
    todo = [(v, row) for v, row in zip(variants, rows, strict=True) if row.match]
    if torch.device(problem.device).type == "cuda":
        for variant, row in todo:
            _measure_on_gpu(problem, variant, row, repeats)
            _free(problem.device)
    else:
        _measure_in_turns(problem, todo, repeats)
    published = rows[0]
    for row in rows:
        if row.p50_ms and published.p50_ms:
            row.vs_published = published.p50_ms / row.p50_ms
            row.vs_published_min = published.min_ms / row.min_ms
    return rows


def _blank(problem: Problem, variant: Variant) -> Row:
    precision = problem.precision(variant)
    preset, batch_size = problem.teacher.preset, problem.batch_size
    published = NETWORKS[preset].batch_sizes[0]
    head = (preset, batch_size, published, problem.density, variant.name, precision)
    return Row(*head, dict(variant.settings))


def _check(problem: Problem, variant: Variant, row: Row) -> None:
    try:
        agreement = problem.agreement(variant)
    except torch.OutOfMemoryError as error:
        row.skipped = _out_of_memory(error)
        return
    checked_in = str(variant.settings.get("precision", "fp32"))  # the published loop: in fp32
    row.loss_error, row.update_error = agreement.losses, agreement.updates
    row.match = agreement.within(checked_in, problem.teacher.network.guidance)
    if not row.match:
        row.skipped = "its result is wrong"
        if agreement.frozen_changed:
            row.skipped += f": {agreement.frozen_changed} frozen entries changed"


def _measure_in_turns(problem: Problem, todo: Sequence[tuple[Variant, Row]], repeats: int) -> None:
    started = [_start(problem, variant, row, first=1) for variant, row in todo]
    for index, timing in in_turns(
        {str(index): one.running.step for index, one in enumerate(started)}, repeats
    ).items():
        started[int(index)].timing = timing
    for one in started:
        _finish(problem, one)


def _measure_on_gpu(problem: Problem, variant: Variant, row: Row, repeats: int) -> None:
    torch.cuda.reset_peak_memory_stats(problem.device)
    try:
        started = _start(problem, variant, row, first=WARM_UP + 2)
        row.skipped = _no_graph(variant, started.running.notes())
        if row.skipped is not None:
            return
        started.timing = Timing(_intervals_ms(started.running.step, repeats))
        row.peak_bytes = torch.cuda.max_memory_allocated(problem.device)
        _finish(problem, started)
    except torch.OutOfMemoryError as error:
        row.skipped = _out_of_memory(error)


def _no_graph(variant: Variant, notes: Sequence[str]) -> str | None:
    """Why a variant that should iterate in a CUDA graph does not; its time would be another's."""
    if variant.settings.get("graph") != "auto" or any("one CUDA graph" in note for note in notes):
        return None
    return "; ".join(notes)


def _start(problem: Problem, variant: Variant, row: Row, first: int) -> _Started:
    begin = time.perf_counter()
    running = problem.start(variant)
    for _ in range(first):
        running.step()
    _synchronize(problem.device)
    return _Started(row, running, time.perf_counter() - begin, first)


def _intervals_ms(step: Step, repeats: int) -> list[float]:
    """Times between events around iterations that follow each other without waiting."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in itertools.pairwise(events)]


def _finish(problem: Problem, started: _Started) -> None:
    """The figures of a variant that has been timed."""
    row, timing = started.row, started.timing
    row.notes = started.running.notes()
    row.p50_ms, (row.p20_ms, row.p80_ms) = timing.p50, timing.p20_p80
    row.min_ms = min(timing.ms)
    row.images_per_s = 2 * problem.batch_size / timing.p50 * 1e3
    row.run_hours = ITERATIONS_OF_A_RUN * timing.p50 / 3.6e6
    row.setup_s = max(0.0, started.begun_s - started.first * timing.p50 / 1e3)
    clock = OptimizerClock(problem.device)
    begin = time.perf_counter()
    with clock.running():
        for _ in range(_CLOCKED):
            started.running.step()
    _synchronize(problem.device)
    clocked_ms = 1e3 * (time.perf_counter() - begin)
    row.optimizer_share = clock.total_ms() / clocked_ms or None
    row.kinds = shares(started.running.step, problem.device)


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _free(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _out_of_memory(error: torch.OutOfMemoryError) -> str:
    # "CUDA out of memory. Tried to allocate 9.56 GiB. GPU 0 has ..."
    return ". ".join(str(error).split(". ")[:2])


# ---- output


def print_rows(rows: Sequence[Row]) -> None:
    """One line per variant, and a second with the shares by kind of kernel."""
    for row in rows:
        head = f"  {row.variant:32} {row.precision:8}"
        if row.p50_ms is None:
            print(f"{head} {row.skipped}", flush=True)
            continue
        line = f"{head} {row.p50_ms:9.2f} ms [{row.p20_ms:.2f}, {row.p80_ms:.2f}]"
        line += f", {row.images_per_s:.1f} images/s, {row.run_hours:.1f} h a run"
        if row.batch_size != row.published_batch:
            hours = row.run_hours * row.published_batch / row.batch_size
            line += f" ({hours:.1f} h at batch {row.published_batch}, projected)"
        if row.vs_published is not None:
            line += f", {row.vs_published:.2f} x ({row.vs_published_min:.2f} x of the fastest)"
        if row.peak_bytes is not None:
            line += f", {row.peak_bytes / 2**30:.1f} GiB"
        line += f", set-up {row.setup_s:.1f} s"
        if row.optimizer_share is not None:
            line += f", optimizers {row.optimizer_share:.1%}"
        print(line, flush=True)
        largest = sorted(row.kinds.items(), key=lambda item: -item[1])
        print(" " * 43 + ", ".join(f"{kind} {share:.0%}" for kind, share in largest if share))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["demo"])
    parser.add_argument("--batch", type=int, nargs="+", help="default: as published")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--variant", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parsed(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    about = machine(arguments.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    chosen = [v for v in VARIANTS if v.name in arguments.variant or v is VARIANTS[0]]
    rows: list[Row] = []
    for preset in arguments.preset:
        for batch_size in arguments.batch or NETWORKS[preset].batch_sizes:
            print(f"{preset}, batch {batch_size}, density {arguments.density:g}", flush=True)
            problem = Problem(preset, batch_size, arguments.density, arguments.device)
            found = run_problem(problem, chosen, arguments.repeats)
            print_rows(found)
            rows += found
            if arguments.json:  # after every network: the whole may take long
                result = {"machine": about, "rows": [asdict(row) for row in rows]}
                write_results(arguments.json, result)
    return 0 if all(row.match is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
