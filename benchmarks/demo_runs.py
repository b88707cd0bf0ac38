"""The demo under each kind of mask, seeds and pairs of classes: what saliency gains, and what not.

    python benchmarks/demo_runs.py                                  # thirty runs, an hour or two

Each run is `pecker-fast demo` in a process of its own; what one with the usual mask makes is then
asked in every other way. A run in which a frozen parameter changed fails the benchmark.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench import Case, Setup, command, make_parser
from rows import Row

from pecker_fast.data import teacher_folder
from pecker_fast.erasure.attack import attack

PAIRS = (("Ankle boot", "Bag"), ("Sneaker", "Bag"))
CASES = {
    "saliency": [],
    "random": ["--mask", "random"],
    "full": ["--mask", "full"],
}
KEPT = (
    "forget", "override", "mask", "density", "seed", "iterations", "forget_accuracy_before",
    "keep_accuracy_teacher", "frechet_teacher", "forget_accuracy_after", "keep_accuracy_after",
    "forget_interval_after", "keep_interval_after", "gone", "kept", "frechet_after",
    "frozen_parameters", "frozen_changed", "training_s", "wall_s", "backend",
)  # fmt: skip


@dataclass(frozen=True)
class DemoCase(Case):
    """One run; `preset` is a name of CASES."""

    benchmark = "demo"

    pair: tuple[str, str]
    seed: int
    iterations: int | None = None  # as the demo has them
    images: int = 100  # of the class in each other way of asking

    def rows(self, setup: Setup) -> Iterator[Row]:
        """The figures of the run."""
        forget, override = self.pair
        options = ["--forget", forget, "--override", override, "--seed", str(self.seed)]
        options += CASES[self.preset]
        if self.iterations is not None:
            options += ["--iterations", str(self.iterations)]
        judge = teacher_folder() / "classifier"
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            demo = [sys.executable, "-m", "pecker_fast.cli", "demo", "--out", str(run), *options]
            subprocess.run(demo, check=True, stdout=subprocess.DEVNULL)
            report = json.loads((run / "report.json").read_text())
            match = report["frozen_changed"] == 0
            row = {"case": self.preset, "match": match, **{key: report[key] for key in KEPT}}
            if self.preset == "saliency":
                asking = {"images": self.images, "seed": self.seed, "device": setup.device}
                worst = max(attack(run, judge, **asking).asked, key=lambda each: each.found.value)
                row |= {"worst_way": worst.way, "worst_share": worst.found.value}
        yield row


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["saliency", "random", "full"])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--images", type=int, default=DemoCase.images)
    options = parser.parse_args(argv)
    cases = [
        DemoCase(name, pair, seed, options.iterations, options.images)
        for name, seed, pair in product(options.cases, options.seeds, PAIRS)
    ]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
