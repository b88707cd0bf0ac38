"""benchmarks/memory.py: what is alive is counted right, and a computed peak is the real one."""

import pytest
import torch
from torch import nn

MIB = 2**20


def layout(name):
    from memory import LAYOUTS

    return next(layout for layout in LAYOUTS if layout.name == name)


def mebibytes(count):
    return torch.zeros(count * MIB, dtype=torch.uint8)


def test_what_is_alive():
    from pecker_fast.runs.live_memory import OTHER, LiveMemory

    before = mebibytes(3)
    with LiveMemory() as memory:
        memory.label([before, before[:5]], "kept")
        first = mebibytes(4)
        view, chunks = first[:10], first.chunk(2)
        second = mebibytes(2)
        assert memory.live_bytes == {"kept": 3 * MIB, OTHER: 6 * MIB}
        memory.label([second], "kept")
        assert memory.live_bytes == {"kept": 5 * MIB, OTHER: 4 * MIB}
        del first, view
        assert memory.live_bytes[OTHER] == 4 * MIB  # the chunks hold it
        del chunks
        third = mebibytes(3)
        assert memory.live_bytes == {"kept": 5 * MIB, OTHER: 3 * MIB}
        third.add_(1)  # in place: nothing new
    assert memory.peak_bytes == 9 * MIB
    assert memory.at_peak == {"kept": 3 * MIB, OTHER: 6 * MIB}


def test_normalisations_are_in_float32_under_autocast_as_on_cuda():
    from pecker_fast.runs.live_memory import cuda_autocast_rules

    norm, x = nn.GroupNorm(1, 4), torch.ones(2, 4, 3, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = norm(x).dtype
        with cuda_autocast_rules():
            assert norm(x).dtype == torch.float32
        assert norm(x).dtype == plain
    with cuda_autocast_rules():
        assert norm(x.float()).dtype == torch.float32


def expected_parts(name, shapes):
    """What stays between iterations: N entries in T tensors, of which about a tenth is salient."""
    numel, tensors = sum(shape.numel() for shape in shapes), len(shapes)
    nnz = sum(max(1, round(0.1 * shape.numel())) for shape in shapes)
    if name == "as published":
        return {
            "weights": 12 * numel,
            "optimizer state": 16 * numel,
            "gradients": 8 * numel,  # they go when their phase begins, not when it ends
            "weight average": 4 * numel,
            "positions of the mask": numel,  # a bool each
        }
    steps = 8 * tensors  # one number per tensor and network
    if name == "three networks, bf16":
        return {
            "weights": 6 * numel,
            "optimizer state": 4 * (numel + nnz) + steps,
            "fp32 masters": 4 * (numel + nnz),
            "positions of the mask": 4 * nnz,
            "weight average": 4 * nnz,
        }
    return {
        "weights": 4 * numel,
        "optimizer state": 8 * nnz + steps,
        "salient values of the others": 8 * nnz,
        "positions of the mask": 4 * nnz,
        "weight average": 4 * nnz,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["as published", "three networks, bf16", "one set, released gradients"]
)
def test_computed_figures_are_those_of_a_real_run(name):
    """The same count on real tensors, from construction to the end of the second iteration.

    3 %: losses that are kept, tables of the schedule, noise that the published loop draws as it
    goes; Adam's temporaries are those of the CPU, where it takes one tensor after the other.
    """
    from memory import compute
    from variants import Problem

    from pecker_fast.runs.live_memory import HOST, OTHER, LiveMemory

    chosen = layout(name)
    computed = compute("tiny", 2, 0.1, chosen)
    problem = Problem("tiny", 2, 0.1, "cpu")
    parts = {kind: size for kind, size in computed.between.items() if kind != OTHER}
    assert parts == expected_parts(name, problem.teacher.shapes().values())
    assert computed.peak_bytes == sum(computed.at_peak.values())
    with LiveMemory() as real:
        real.label(problem.teacher.parameters(), HOST)
        step, _ = problem.start(chosen)
        step()
        step()
    peak = real.peak_bytes
    if chosen.trainer:  # its original, of which the networks are copies, is on the host
        peak -= 4 * sum(shape.numel() for shape in problem.teacher.shapes().values())
    assert computed.peak_bytes == pytest.approx(peak, rel=0.03)


@pytest.mark.slow
def test_rows_are_written(run):
    from memory import MemoryCase

    names = ["one set, bf16", "the same, fused blocks, CUDA graph"]
    code, result = run([MemoryCase("tiny_text")], "--provider", *names)
    assert code == 0
    computed, fused = result["rows"]
    assert computed["settings"]["precision"] == "bf16"
    assert computed["settings"]["mask.apply"] == "both"
    assert computed["computed_peak_bytes"] == sum(computed["parts"].values())
    assert "computed_peak_bytes" not in fused and "CUDA" in fused["skipped"]
    assert not computed.keys() & {"measured_peak_bytes", "p50_ms"}
