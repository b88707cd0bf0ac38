"""Everything that is to be known about a GPU, in one run: benchmarks/results/<card>.json.

    python benchmarks/gpu.py                      # at most about half an hour on an H100
    python benchmarks/gpu.py --list               # the cases, most important first
    python benchmarks/gpu.py --only sdxl topk --json some.json

The file is written after every row, so a run that is cut off leaves what it has measured. No case
is started after --minutes; "complete" in the file says whether all were measured. The exit code is
1 if a result was wrong or a case failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import Case, command, make_parser
from iteration import IterationCase
from memory import MemoryCase
from step_time import StepCase
from topk import TopkCase

__all__ = ["CASES", "main"]

CASES: tuple[Case, ...] = (
    StepCase("sd15"),
    StepCase("sd15", "random"),
    StepCase("sd15", "none", 1.0),
    TopkCase("sd15"),
    IterationCase("cifar10", 128),
    IterationCase("sd15", 1),
    MemoryCase("sd15"),
    StepCase("ddpm_cifar10"),
    StepCase("sd15", "heavy", 0.01),
    StepCase("sd15", "random", 0.5),
    StepCase("sd15", "heavy", 0.5),
    StepCase("sd15", "random", 0.01),
    StepCase("ddpm_cifar10", "random"),
    StepCase("ddpm_cifar10", "none", 1.0),
    StepCase("sd15", dtype="bfloat16"),
    StepCase("sd15", "none", 1.0, dtype="bfloat16"),
    TopkCase("sd15", 0.5),
    TopkCase("sd15", 0.01),
    StepCase("sd15", "heavy", 0.5, beta1=0.0),  # as published for SFD
    StepCase("sdxl"),
    StepCase("sdxl", "none", 1.0),
    StepCase("ddpm_stl10"),
    StepCase("ddpm_stl10", "none", 1.0),
    StepCase("ddpm_cifar10", "heavy", 0.5),
    StepCase("ddpm_cifar10", "heavy", 0.01),
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
    parser = make_parser(__doc__, repeats=20, device="cuda")
    parser.set_defaults(minutes=30.0)
    return command(parser.parse_args(argv), cases, file_of_card=True)


if __name__ == "__main__":
    sys.exit(main())
