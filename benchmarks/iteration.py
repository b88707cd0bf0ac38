"""Time of one training iteration: as published, with each change alone, and with all of them.

    python benchmarks/iteration.py                                  # the demo's network, on the CPU
    python benchmarks/iteration.py --device cuda --preset cifar10 stl10
    python benchmarks/iteration.py --preset tiny --repeats 2 --json out.json

Every row is checked first (see variants.py); one that fails is printed without a time and the exit
code is 1. A variant that cannot run here has a row that says why. The mask is given, so the time to
find one is in no figure.

On a GPU iterations follow each other without waiting, an event between any two, and rows have the
peak of memory.
"""

# ruff: noqa: E402 - the process is settled before torch is loaded
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pecker_fast.process import settle_process

settle_process()  # before torch is loaded, as the command line does

import torch
from bench import Builder, Case, NotApplicable, Provider, Setup, command, make_parser
from networks import NETWORKS
from timing import Timing, back_to_back, peak_memory
from variants import Problem, Variant, variants

from pecker_fast.distill.graph import WARM_UP
from pecker_fast.nn import winograd


def build(problem: Problem, variant: Variant) -> Provider:
    """The gate of one variant; then it is made and has run its first iterations."""
    on_gpu = torch.device(problem.device).type == "cuda"
    reason = winograd.unavailable() if variant.settings.get("accelerate") and not on_gpu else None
    if reason is not None:
        raise NotApplicable(reason)
    match, errors = problem.check(variant)
    columns = {"precision": problem.precision(variant), "settings": dict(variant.settings)}
    columns |= errors
    if not match:
        return Provider(None, False, columns)

    def begin() -> tuple[Callable[[], object], list[str]]:
        step, notes = problem.start(variant)
        for _ in range(WARM_UP + 2 if on_gpu else 1):  # the last are replays
            step()
        return step, notes()

    (step, notes), columns["peak_bytes"] = peak_memory(begin, problem.device)
    # One that should iterate in a CUDA graph and does not would have another's time.
    graph = variant.settings.get("graph") == "auto"
    if graph and not any("one CUDA graph" in note for note in notes):
        raise NotApplicable("; ".join(notes))
    published = problem.network.batch_sizes[0]
    return Provider(step, True, columns | {"published_batch": published, "notes": notes})


@dataclass(frozen=True)
class IterationCase(Case):
    """One network and batch size: B remain images, and as many forget images."""

    benchmark = "iteration"

    batch_size: int
    density: float = 0.1

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Every variant."""
        problem = Problem(self.preset, self.batch_size, self.density, setup.device)
        return {each.name: partial(build, problem, each) for each in variants(setup.device)}

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
