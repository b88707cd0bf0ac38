"""The fast way of the device backends: a bracket from a sample, and its way out where that misled.

Thresholds are lowered so that small inputs take it; the results must not change.
"""

from __future__ import annotations

import math

import pytest
import torch

from pecker_fast.backends import device_topk, reference
from pecker_fast.backends.device_topk import DeviceTopk
from pecker_fast.errors import PeckerError

NUMEL = 60_000


@pytest.fixture(autouse=True)
def _sampled(monkeypatch, backend):
    if backend.name in ("reference", "cpu"):
        pytest.skip(f"{backend.name} takes no sample")
    monkeypatch.setattr(device_topk, "_SAMPLE_FROM", 1000)
    monkeypatch.setattr(device_topk, "_SAMPLES", 2048)


@pytest.fixture
def outcomes(monkeypatch):
    """Whether each bracket held the threshold."""
    seen = []
    find = DeviceTopk._find_in_bracket

    def watched(self, work, k, total):
        seen.append(find(self, work, k, total))
        return seen[-1]

    monkeypatch.setattr(DeviceTopk, "_find_in_bracket", watched)
    return seen


def check(backend, scores, k):
    moved = [tensor.to(backend.device) for tensor in scores]
    found = backend.module.select_topk(moved, k)
    expected = reference.select_topk(scores, k)
    assert [p.tolist() for p in found] == [p.tolist() for p in expected]


def pieces(values):
    """Three tensors, one of them not aligned to 16 bytes, and an empty one."""
    return [values[:1], values[1:1], values[1:20_001], values[20_001:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 600, 6000, 30_000, NUMEL - 1, NUMEL])
def test_bracket_holds_the_threshold(backend, outcomes, k, dtype):
    values = torch.exp(2 * torch.randn(NUMEL, dtype=dtype)) * torch.randn(NUMEL, dtype=dtype)
    check(backend, pieces(values), k)
    assert outcomes == [True]


def test_many_ties_inside_the_bracket(backend, outcomes):
    check(backend, pieces(torch.randint(0, 2000, (NUMEL,)).float()), 6000)
    assert outcomes == [True]


def test_a_bracket_of_one_value(backend, outcomes):
    """Most scores are equal, as where most gradients are exactly 0."""
    values = torch.zeros(NUMEL)
    values[::100] = torch.rand(NUMEL // 100) + 1
    check(backend, pieces(values), 30_000)
    assert outcomes == [True]


def test_a_sample_that_misleads(backend, outcomes, monkeypatch):
    """Every sampled score is small: the bracket lies below the threshold."""
    kernels = backend.module.kernels
    monkeypatch.setattr(kernels, "sample", lambda dtype, tensors, ends, out: out.uniform_(0, 1e-6))
    check(backend, pieces(torch.rand(NUMEL) + 1), 6000)
    assert outcomes == [False]


def test_more_inside_than_there_is_memory_for(backend, outcomes, monkeypatch):
    monkeypatch.setattr(device_topk, "_KEPT_BYTES", 8 * 100)
    check(backend, pieces(torch.rand(NUMEL)), 6000)
    assert outcomes == [False]


@pytest.mark.parametrize("where", [0, 30_000, NUMEL - 1])
def test_nan_is_found_wherever_it_is(backend, where):
    values = torch.rand(NUMEL)
    values[where] = math.nan
    scores = [tensor.to(backend.device) for tensor in pieces(values)]
    name = {0: "a", 30_000: "d", NUMEL - 1: "d"}[where]
    with pytest.raises(PeckerError, match=f"NaN in the scores of '{name}'"):
        backend.module.select_topk(scores, 100, list("abcd"))


def test_infinities(backend, outcomes):
    values = torch.randn(NUMEL)
    values[::7], values[::11] = math.inf, -math.inf
    for k in (100, NUMEL // 2, NUMEL - 100):
        check(backend, pieces(values), k)
    assert outcomes == [True] * 3


def test_the_host_waits_twice_and_makes_no_table_in_between(backend, outcomes, monkeypatch):
    """A device has nothing to do from the counts on until the next launch.

    The second time before the last launch: tensors are cut out of its result while it runs.
    """
    events = []

    def note(where, name, event):
        original = getattr(where, name)

        def noted(*arguments, **options):
            events.append(event)
            return original(*arguments, **options)

        monkeypatch.setattr(where, name, noted)

    kernels = backend.module.kernels
    for launch in ("collect", "histogram", "settle", "write"):
        note(kernels, launch, launch)
    for table in ("upload", "work_list"):
        note(device_topk, table, "table")
    for read in ("tolist", "__int__", "__bool__", "__float__", "item"):
        note(torch.Tensor, read, "wait")
    values = torch.randn(NUMEL)
    backend.module.select_topk([tensor.to(backend.device) for tensor in pieces(values)], 6000)
    after = events[events.index("collect") :]
    assert after == ["collect", "wait", *["histogram"] * 3, "settle", "wait", "write"]
    assert outcomes == [True]
