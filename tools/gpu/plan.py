"""Half an hour with a card: six parts of at most ten minutes, most valuable evidence first.

A part is a list of commands over tests/ and benchmarks/. The figures beside them were predicted
without a card, for an H100 (copies at 3.03 TB/s); merge.py prints them beside what is measured.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Row: TypeAlias = "dict[str, object]"

PART_SECONDS = 600


class Command(NamedTuple):
    """One command of a part.

    Attributes:
        line: {python} is the one that runs run.py, {json} a file for the rows of a benchmark, which
            writes it after each row.
        expect: What should come of it, in words.
        needs: A program without which it is left out.
    """

    line: str
    expect: str
    needs: str | None = None


class Part(NamedTuple):
    """What is run together, in at most ten minutes."""

    title: str
    commands: tuple[Command, ...]


_BENCH = "--device cuda --commit {commit} --json {json}"
_TESTS = "{python} -m pytest -q --timeout 300"
_STEPS = "{python} benchmarks/step_time.py --preset"
_NCU = (
    "ncu --metrics dram__bytes.sum,sm__inst_executed_pipe_alu.sum.pct_of_peak_sustained_active"
    " --launch-skip 6 --launch-count 4 --csv "
)

PARTS: tuple[Part, ...] = (
    Part(
        "bits, and what only a card can show",
        (
            Command(
                f"{_TESTS} tests/backends/test_backends.py -k "
                "'give_the_bits_of_the_cpus and not host and not interpret'",
                "16 passed, 24 skipped: the bits of the CPU's backend on the card",
            ),
            Command(f"{_TESTS} tests/test_gpu.py -k 'not sanitizer'", "all passed, one skipped"),
            Command(
                f"{_TESTS} tests/distill/test_gpu.py -k 'never_wait or fails'",
                "both passed: one graph, no waiting, a clean failure",
            ),
        ),
    ),
    Part(
        "optimizer step and top-k",
        (
            Command(
                f"{{python}} benchmarks/topk.py --preset sd15 --densities 0.1 {_BENCH}", "see rows"
            ),
            Command(
                f"{_STEPS} sd15 --masks heavy random --densities 0.1 {_BENCH}",
                "see rows; no mask at most 1.02 x torch's fused step",
            ),
            Command(
                f"{_STEPS} ddpm_cifar10 --masks heavy --densities 0.1 {_BENCH}",
                "host time of 329 tensors 110 to 190 us",
            ),
            Command(
                f"{_STEPS} sd15 --masks heavy random --densities 0.5 0.01 {_BENCH}",
                "see rows",
            ),
        ),
    ),
    Part(
        "what bounds the sparse step: bytes, instructions",
        (
            Command(
                f"{_NCU}{{python}} tools/gpu/few_launches.py step heavy 0.1 cuda",
                "bytes as of the floor; no pipe near its peak",
                needs="ncu",
            ),
            Command(
                f"{_NCU}{{python}} tools/gpu/few_launches.py topk heavy 0.1 cuda",
                "ALU 75 to 80 % in collect and write",
                needs="ncu",
            ),
        ),
    ),
    Part(
        "every test of the backends on the card",
        (
            Command(
                f"{_TESTS} -n 8 tests/backends tests/optim tests/kernels "
                "-k '(cuda or triton or gpu) and not aot and not module'",
                "all passed; 1,526 are collected",
            ),
        ),
    ),
    Part(
        "compute-sanitizer",
        (
            Command(
                f"{_TESTS} tests/test_gpu.py -k sanitizer",
                "4 passed: memcheck and racecheck of both backends; 2 skipped",
                needs="compute-sanitizer",
            ),
        ),
    ),
    Part(
        "the training iteration",
        (
            Command(
                "{python} benchmarks/iteration.py --preset cifar10 --batch 128 "
                f"--provider 'as published' 'all, algorithm unchanged' {_BENCH}",
                "see rows; 4.2 to 6.0 x as published",
            ),
            Command(f"{_TESTS} tests/distill/test_gpu.py", "all passed"),
        ),
    ),
)

# (benchmark, preset, mask or None, density, provider) -> from, to.
PREDICTED_MS: dict[tuple[object, ...], tuple[float, float]] = {
    ("step_time", "sd15", "none", 1.0, "pecker_fast[cuda]"): (8.5, 9.1),
    ("step_time", "sd15", "random", 0.5, "pecker_fast[cuda]"): (6.35, 6.75),
    ("step_time", "sd15", "heavy", 0.5, "pecker_fast[cuda]"): (5.45, 5.85),
    ("step_time", "sd15", "random", 0.1, "pecker_fast[cuda]"): (3.6, 3.95),
    ("step_time", "sd15", "heavy", 0.1, "pecker_fast[cuda]"): (1.39, 1.52),
    ("step_time", "sd15", "random", 0.01, "pecker_fast[cuda]"): (0.93, 1.02),
    # 82 to 90 % of the floor: addresses in the launch and launches that overlap spare 7 to 9 us.
    ("step_time", "sd15", "heavy", 0.01, "pecker_fast[cuda]"): (0.174, 0.191),
    # 1.68 M warps of 512 scores. Integer instructions, 253 in collect and 236 in write, half a
    # warp's a cycle: .92 and .86 ms, less than the memory's 1.14 and 1.25. Together 2.4, the pipe
    # being busy for 3/4 of the time, to 2.7, if they get in each other's way as in
    # benchmarks/budget.py of 834cb37. Tables, sample, sort, sums and two waits: .4 to .5.
    ("topk", "sd15", None, 0.1, "pecker_fast[cuda]"): (2.8, 3.2),
    ("topk", "sd15", None, 0.1, "pecker_fast[triton]"): (8.0, 10.0),
    ("iteration", "cifar10", None, 0.1, "as published"): (587.0, 660.0),
    # benchmarks/budget.py of 834cb37, 12 % more or less.
    ("iteration", "cifar10", None, 0.1, "all, algorithm unchanged"): (110.0, 140.0),
}


def predicted(row: Row) -> tuple[float, float] | None:
    """What was predicted of a row, in ms."""
    key = (row["benchmark"], row["preset"], row.get("mask"), row["density"], row["provider"])
    return PREDICTED_MS.get(key)
