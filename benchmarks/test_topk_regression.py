"""Regressions of the mask: pytest benchmarks --benchmark-enable --benchmark-compare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for presets.py and topk.py

from presets import shapes
from topk import make_scores

from pecker_fast import backends
from pecker_fast.masks.mask import SaliencyMask


@pytest.fixture(scope="module")
def scores():
    return make_scores("ddpm_cifar10", "heavy", "cpu")


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_select_topk(benchmark, scores, density):
    """The backend that "auto" picks; topk.py compares it with others and with the reference."""
    backend = backends.select("auto", "cpu")
    benchmark.extra_info["backend"] = backends.name_of(backend)
    k = round(density * sum(score.numel() for score in scores))
    found = benchmark(backend.select_topk, scores, k)
    assert sum(positions.numel() for positions in found) == k


@pytest.mark.parametrize("granularity", ["element", "out_channel", "block"])
def test_from_scores(benchmark, scores, granularity):
    named = dict(zip(shapes("ddpm_cifar10"), scores, strict=True))
    mask = benchmark(SaliencyMask.from_scores, named, 0.1, granularity=granularity)
    assert 0.09 < mask.density <= 0.1000001


@pytest.mark.parametrize("operation", ["save", "load", "digest"])
def test_files(benchmark, scores, operation, tmp_path):
    mask = SaliencyMask.from_scores(dict(zip(shapes("ddpm_cifar10"), scores, strict=True)), 0.1)
    path = tmp_path / "mask.safetensors"
    mask.save(path)
    calls = {
        "save": lambda: mask.save(path),
        "load": lambda: SaliencyMask.load(path),
        "digest": lambda: SaliencyMask(mask.indices, mask.shapes).digest,
    }
    benchmark(calls[operation])
    assert SaliencyMask.load(path) == mask
