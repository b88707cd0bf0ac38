"""Everything that is to be known about a GPU, in one run: benchmarks/results/<card>.json.

    python benchmarks/gpu.py                      # at most about half an hour on an H100
    python benchmarks/gpu.py --list               # the cases, most important first
    python benchmarks/gpu.py --only sdxl topk --json some.json

The file is written after every row, so a run that is cut off leaves what it has measured;
"complete" in the file says whether all were measured. The exit code is 1 if a result was wrong or a
case failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import Case, command, make_parser
from iteration import IterationCase
from step_time import StepCase
from topk import TopkCase

_MASKS = [(mask, density) for density in (0.1, 0.5, 0.01) for mask in ("heavy", "random")]
CASES: tuple[Case, ...] = (
    *(StepCase("sd15", *mask) for mask in [*_MASKS, ("none", 1.0)]),
    *(TopkCase("sd15", density) for density in (0.1, 0.5, 0.01)),
    IterationCase("cifar10", 128),
    IterationCase("sd15", 1),
    *(StepCase("ddpm_cifar10", *mask) for mask in [*_MASKS[:3], ("none", 1.0)]),
    *(StepCase("sd15", *mask, dtype="bfloat16") for mask in (*_MASKS[:2], ("none", 1.0))),
    StepCase("sd15", "heavy", 0.5, beta1=0.0),  # as published for SFD
    *(StepCase("sdxl", *mask) for mask in [*_MASKS[:2], ("none", 1.0)]),
    *(StepCase("ddpm_stl10", *mask) for mask in [_MASKS[0], ("none", 1.0)]),
    StepCase("sd15", dtype="float16"),
    StepCase("ddpm_cifar10", dtype="bfloat16"),
    TopkCase("ddpm_cifar10"),
    IterationCase("sd15", 4),
    IterationCase("stl10", 64),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=20, device="cuda")
    return command(parser.parse_args(argv), CASES, file_of_card=True)


if __name__ == "__main__":
    sys.exit(main())
