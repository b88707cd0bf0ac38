"""Regressions of the optimizer step: pytest benchmarks --benchmark-enable --benchmark-compare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for inputs.py and providers.py

from bench import usable_backends
from inputs import make_input
from providers import baselines, checked_ours

CASES = [("none", 1.0), ("random", 0.1), ("heavy", 0.1)]


@pytest.mark.parametrize("backend", usable_backends(None, "cpu"))
@pytest.mark.parametrize(("kind", "density"), CASES)
def test_masked_adamw(benchmark, kind, density, backend):
    """A speed is never reported for a wrong result."""
    provider = checked_ours(
        make_input("ddpm_cifar10", torch.float32, kind, density, "cpu"), backend
    )
    assert provider.match
    benchmark(provider.call)


@pytest.mark.parametrize("name", ["torch_fused", "gradmask_fused"])
def test_baseline(benchmark, name):
    made = make_input("ddpm_cifar10", torch.float32, "random", 0.1, "cpu")
    benchmark(baselines(made)[name]().call)
