"""Does saliency help? Forgetting from the shipped first stage under each mask, at each rate.

    python benchmarks/evidence.py --json benchmarks/results/evidence-cpu.json --minutes 60
    python benchmarks/evidence.py --list --only retain_aware

Every run forgets until its probe says that the class has gone and the others are kept, or to its
limit. A mask is compared at the best of its own learning rates: with beta1 = 0 a rate says how far
every entry moves, so one rate for all says nothing. The file is gone on with: cells that it has are
not run again, and the table says how many are in.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench import Case, Setup, command, make_parser
from rows import Row

from pecker_fast import erase
from pecker_fast.data import first_stage_folder, teacher_folder
from pecker_fast.erasure.attack import attack

PAIRS = (("Ankle boot", "Bag"), ("Sneaker", "Bag"), ("Shirt", "T-shirt"))
KINDS = ("retain_aware", "random", "forget", "fisher_ratio", "denoise", "full")
DENSITIES = (0.1, 0.01, 0.03, 0.3, 0.003)
RATES = (4e-4, 2e-4, 8e-4, 1.6e-3)  # times density^-1/2
GRANULARITIES = ("element", "out_channel")
# The weights that the demo had when the study began.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "redirected": {
        "generator.lambda_forget": 2.0, "generator.every_step": 1.0,
        "generator.every_step_forget": 1.0,
    },
    "as published": {
        "generator.scores": True, "generator.one_step": 0.0, "generator.every_step": 0.0,
        "generator.lambda_forget": 2.0,
    },
}  # fmt: skip
LIMIT = 80
JUDGED = 200  # images of each class at the end
ASKED = 30  # of the class in each other way of asking


@dataclass(frozen=True)
class ErasureCase(Case):
    """One run; `preset` is the pair of classes."""

    benchmark = "evidence"

    objective: str
    mask: str
    granularity: str
    density: float
    lr: float
    seed: int

    def rows(self, setup: Setup) -> Iterator[Row]:
        """What it took, and what the result is like."""
        forget, override = self.preset.split(" -> ")
        saliency = self.mask not in ("random", "full")
        settings = {
            **OBJECTIVES[self.objective],
            "mask.kind": "saliency" if saliency else self.mask,
            "mask.density": self.density,
            "mask.granularity": self.granularity,
            "generator.lr": self.lr,
            "seed": self.seed,
            "iterations": LIMIT,
            "until": {"forget": 0.02, "keep_drop": 0.03, "every": 4},
        }
        if saliency:
            settings["saliency.kind"] = self.mask
        judge = teacher_folder() / "classifier"
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            erase(
                teacher_folder(),
                forget,
                override,
                out=run,
                config="demo",
                first_stage=first_stage_folder(),
                classifier=judge,
                statistics=teacher_folder() / "statistics.safetensors",
                per_class=JUDGED,
                teacher_steps=2,  # the original's figures are not looked at
                device=setup.device,
                settings=settings,
            )
            asked = attack(run, judge, images=ASKED, seed=self.seed, device=setup.device).asked
            report = json.loads((run / "report.json").read_text())
        start, *_, end = report["curve"]
        worst = max(asked, key=lambda each: each.found.value)
        yield {
            "benchmark": self.benchmark,
            **asdict(self),
            "match": report["frozen_changed"] == 0,
            "iterations": end["iteration"],
            "reached": end["iteration"] < LIMIT,
            "train_s": end["wall_s"],
            "mask_s": report["stage_s"]["mask"],
            "salient_parameters": report["salient_parameters"],
            "forget_accuracy": report["forget_accuracy_after"],
            "keep_accuracy": report["keep_accuracy_after"],
            "keep_drop": start["keep_accuracy"] - end["keep_accuracy"],
            "frechet": report["frechet_after"],
            "worst_way": worst.way,
            "worst_share": worst.found.value,
        }


def cells() -> list[ErasureCase]:
    """The whole design, what says most first: a seed, one pair, the mask that is the default."""
    grid = product(range(5), GRANULARITIES, PAIRS, OBJECTIVES, DENSITIES, RATES, KINDS)
    found = [
        ErasureCase(" -> ".join(pair), objective, kind, granularity, density, lr, seed)
        for seed, granularity, pair, objective, density, lr, kind in grid
    ]
    # All parameters have one density and no granularity.
    return [c for c in found if c.mask != "full" or (c.density, c.granularity) == (0.1, "element")]


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__, repeats=1).parse_args(argv)
    return command(options, cells(), go_on=True)


if __name__ == "__main__":
    sys.exit(main())
