"""Time of one training iteration: as published, with each change alone, and with all of them.

    python benchmarks/iteration.py                                  # the demo's network, on the CPU
    python benchmarks/iteration.py --device cuda --preset cifar10 stl10
    python benchmarks/iteration.py --preset tiny --repeats 2 --json out.json

Every row is checked first (see variants.py); one that fails is printed without a time and the exit
code is 1. A variant that cannot run here has a row that says why. The mask is given, so the time to
find one is in no figure.

On a GPU iterations follow each other without waiting, an event between any two. "Set-up" is what
construction and the first iterations take beyond ordinary ones: on a GPU that is where kernels are
compiled or loaded and the CUDA graph is captured.
"""

# ruff: noqa: E402 - the process is settled before torch is loaded
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pecker_fast.process import settle_process

settle_process()  # before torch is loaded, as the command line does

import torch
from bench import Builder, Case, NotApplicable, Provider, Setup, command, make_parser
from networks import NETWORKS
from profile_kinds import shares
from rows import Row
from timing import Timing, back_to_back
from variants import VARIANTS, Problem, Variant

from pecker_fast.distill.graph import WARM_UP

__all__ = ["IterationCase", "build", "main"]

ITERATIONS_OF_A_RUN = 50_000


def build(problem: Problem, variant: Variant) -> Provider:
    """The gate of one variant; then it is made and has run its first iterations."""
    if (obstacle := problem.obstacle(variant)) is not None:
        raise NotApplicable(obstacle)
    match, errors = problem.check(variant)
    precision = problem.precision(variant)
    columns = {"precision": precision, "settings": problem.settings(variant), **errors}
    if not match:
        return Provider(None, False, columns)

    on_gpu = torch.device(problem.device).type == "cuda"
    memory = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(problem.device)
        memory = torch.cuda.memory_allocated(problem.device)
    begin = time.perf_counter()
    step, notes = problem.start(variant)
    first = WARM_UP + 2 if on_gpu else 1
    for _ in range(first):
        step()
    if on_gpu:
        torch.cuda.synchronize(problem.device)
    begun_s = time.perf_counter() - begin
    # One that should iterate in a CUDA graph and does not would have another's time.
    wanted = on_gpu and problem.settings(variant).get("graph") == "auto"
    if wanted and not any("one CUDA graph" in note for note in notes()):
        raise NotApplicable("; ".join(notes()))

    def after(timing: Timing) -> Row:
        p50 = timing.columns()["p50_ms"]
        peak = torch.cuda.max_memory_allocated(problem.device) - memory if on_gpu else None
        kinds = shares(step, problem.device)
        return {
            "run_hours": ITERATIONS_OF_A_RUN * p50 / 3.6e6,
            "published_batch": problem.teacher.network.batch_sizes[0],
            "setup_s": max(0.0, begun_s - first * p50 / 1e3),
            "peak_bytes": peak,
            "optimizer_share": kinds["optimizer"],
            "kinds": kinds,
            "notes": notes(),
        }

    return Provider(step, True, columns, after=after)


@dataclass(frozen=True)
class IterationCase(Case):
    """One network and batch size: B remain images, and as many forget images."""

    benchmark = "iteration"
    baselines = (VARIANTS[0].name,)

    batch_size: int
    density: float = 0.1

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Every variant."""
        problem = Problem(self.preset, self.batch_size, self.density, setup.device)
        return {variant.name: partial(build, problem, variant) for variant in VARIANTS}

    def measure(self, setup: Setup, provider: Provider) -> Timing:
        """Iterations follow each other as in a run."""
        return back_to_back(provider.call, setup.repeats)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["demo"])
    parser.add_argument("--batch", type=int, nargs="+", help="default: as published")
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args(argv)
    cases = [
        IterationCase(preset, batch_size, options.density)
        for preset in options.preset
        for batch_size in options.batch or NETWORKS[preset].batch_sizes
    ]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
