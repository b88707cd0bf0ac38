"""Top-k of groups: the order of summation, and every backend against a plain ranking."""

from __future__ import annotations

import math

import pytest
import torch

from pecker_fast.backends.groups import group_means
from pecker_fast.errors import PeckerError

INF = float("inf")


def plain_mean(values: list[float]) -> float:
    """The specified order, in Python floats: 32 interleaved sums, then a tree."""
    lanes = [0.0] * 32
    for i, value in enumerate(values):
        lanes[i % 32] += value
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0] / len(values)


def plain_selection(scores, lengths, k):
    """Best groups first while they fit, at least one; equal means in the order of positions."""
    groups = []
    for number, (tensor, length) in enumerate(zip(scores, lengths, strict=True)):
        values = tensor.flatten().tolist()
        for begin in range(0, len(values), length):
            run = values[begin : begin + length]
            groups.append((-plain_mean(run), number, begin, len(run)))
    taken, total = [[] for _ in scores], 0
    for rank, (_, number, begin, size) in enumerate(sorted(groups)):
        total += size
        if rank > 0 and total > k:
            break
        taken[number] += range(begin, begin + size)
    return [sorted(positions) for positions in taken]


@pytest.fixture
def select_groups(backend):
    def select(scores, lengths, k, names=None):
        moved = [tensor.to(backend.device) for tensor in scores]
        found = backend.module.select_groups(moved, lengths, k, names)
        assert all(p.dtype == torch.int32 and p.device == backend.device for p in found)
        return [positions.tolist() for positions in found]

    return select


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 100, 1000, 5000])
def test_means_are_summed_in_the_specified_order(length, dtype):
    scores = torch.randn(4097, dtype=dtype) * torch.logspace(-8, 8, 4097, dtype=dtype)
    expected = [plain_mean(scores[i : i + length].tolist()) for i in range(0, 4097, length)]
    assert group_means(scores, length).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 70, 640, 3000, 6000, 10**9])
def test_selection(select_groups, k, dtype):
    sizes, lengths = (4097, 1, 600, 0, 1300), (64, 1, 7, 5, 1300)
    scores = [torch.randn(n).abs().to(dtype) for n in sizes]
    k = min(k, sum(sizes))
    assert select_groups(scores, lengths, k) == plain_selection(scores, lengths, k)


def test_many_tiles(select_groups):
    """More groups than the blocks of a small launch take at once."""
    scores = [torch.rand(3001), torch.rand(3), torch.rand(1500)]
    for k in (5, 2000):
        assert select_groups(scores, (2, 1, 3), k) == plain_selection(scores, (2, 1, 3), k)


@pytest.mark.parametrize("k", [1, 3, 4, 99, 100, 101, 1000, 1537, 2000])
def test_ties_go_to_the_first_and_stop_at_the_first_misfit(select_groups, k):
    """Groups of 3 and 5 entries, two means in all: ties run over tensors, tiles and sizes."""
    scores = [torch.ones(1000), torch.ones(903), torch.ones(1000)]
    scores[1][:300] = 2.0
    lengths = (3, 5, 3)
    assert select_groups(scores, lengths, k) == plain_selection(scores, lengths, k)


def test_the_best_group_is_taken_even_if_it_is_too_large(select_groups):
    scores = [torch.tensor([1.0, 1.0, 5.0, 5.0]), torch.tensor([3.0])]
    assert select_groups(scores, (2, 1), 1) == [[2, 3], []]


def test_infinities_have_means_and_nan_is_refused(select_groups):
    scores = [torch.tensor([0.0, INF, 1.0, 2.0, -INF, 3.0])]
    assert select_groups(scores, (2,), 4) == [[0, 1, 2, 3]]
    with pytest.raises(PeckerError, match=r"scores of 'w' hold \+inf and -inf in one group"):
        select_groups([torch.tensor([INF, -INF])], (2,), 1, ["w"])
    with pytest.raises(PeckerError, match="NaN in the scores of 'w'"):
        select_groups([torch.ones(3), torch.tensor([1.0, math.nan])], (2, 2), 1, ["v", "w"])
