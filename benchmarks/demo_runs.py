"""The demo under each kind of mask and several seeds: what saliency gains, and what it does not.

    python benchmarks/demo_runs.py                                  # nine runs, some 20 minutes
    python benchmarks/demo_runs.py --cases saliency both bf16       # other settings, see CASES

Each run is `pecker-fast demo` in a process of its own. A run in which a frozen parameter changed
fails the benchmark.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine
from rows import write_results

CASES = {
    "saliency": [],
    "random": ["--mask", "random"],
    "full": ["--mask", "full"],
    # A mask on the pseudo-score too: one set of weights for all three networks.
    "both": ["--set", "mask.apply=both"],
    "bf16": ["--set", "precision=bf16"],
    "both bf16": ["--set", "mask.apply=both", "--set", "precision=bf16"],
}
KEPT = (
    "forget", "override", "mask", "density", "seed", "iterations", "forget_accuracy_before",
    "keep_accuracy_teacher", "frechet_teacher", "forget_accuracy_after", "keep_accuracy_after",
    "frechet_after", "frozen_parameters", "frozen_changed", "wall_s", "backend",
)  # fmt: skip


def demo(options: list[str]) -> dict[str, Any]:
    """The figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pecker_fast.cli", "demo", "--out", f"{folder}/run"]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
        report = json.loads(Path(folder, "run", "report.json").read_text())
    if report["frozen_changed"]:
        raise SystemExit(f"{options}: {report['frozen_changed']} frozen parameters changed")
    return {key: report[key] for key in KEPT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["saliency", "random", "full"])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    extra = [] if arguments.iterations is None else ["--iterations", str(arguments.iterations)]
    rows = []
    for seed in arguments.seeds:
        for name in arguments.cases:
            row = {"case": name} | demo([*CASES[name], "--seed", str(seed), *extra])
            rows.append(row)
            print(
                f"{row['forget']:10} -> {row['override']:10} {name:9} seed {row['seed']}: "
                f"forget {row['forget_accuracy_after']:.3f} keep {row['keep_accuracy_after']:.3f} "
                f"Fréchet {row['frechet_after']:.2f}, {row['wall_s']:.0f} s",
                flush=True,
            )
            if arguments.json:  # after every run: the whole takes long
                write_results(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
