"""The demo under each kind of mask and several seeds: what saliency gains, and what it does not.

    python benchmarks/demo_runs.py                                  # nine runs, some 15 minutes

Each run is `pecker-fast demo` in a process of its own. A run in which a frozen parameter changed
fails the benchmark.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import Case, Setup, command, make_parser
from rows import Row

CASES = {
    "saliency": [],
    "random": ["--mask", "random"],
    "full": ["--mask", "full"],
}
KEPT = (
    "forget", "override", "mask", "density", "seed", "iterations", "forget_accuracy_before",
    "keep_accuracy_teacher", "frechet_teacher", "forget_accuracy_after", "keep_accuracy_after",
    "frechet_after", "frozen_parameters", "frozen_changed", "wall_s", "backend",
)  # fmt: skip


@dataclass(frozen=True)
class DemoCase(Case):
    """One run; `preset` is a name of CASES."""

    benchmark = "demo"

    seed: int
    iterations: int | None = None  # as the demo has them

    def rows(self, setup: Setup) -> Iterator[Row]:
        """The figures of the run."""
        options = [*CASES[self.preset], "--seed", str(self.seed)]
        if self.iterations is not None:
            options += ["--iterations", str(self.iterations)]
        with tempfile.TemporaryDirectory() as folder:
            demo = [sys.executable, "-m", "pecker_fast.cli", "demo", "--out", f"{folder}/run"]
            subprocess.run([*demo, *options], check=True, stdout=subprocess.DEVNULL)
            report = json.loads(Path(folder, "run", "report.json").read_text())
        match = report["frozen_changed"] == 0
        yield {"case": self.preset, "match": match, **{key: report[key] for key in KEPT}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["saliency", "random", "full"])
    parser.add_argument("--iterations", type=int)
    options = parser.parse_args(argv)
    cases = [DemoCase(name, s, options.iterations) for s in options.seeds for name in options.cases]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
