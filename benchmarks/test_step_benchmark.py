"""Regressions of the optimizer step: pytest benchmarks --benchmark-enable --benchmark-compare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for inputs.py and providers.py

from inputs import make_case
from providers import baselines, checked_ours, usable_backends

from pecker_fast import backends

CASES = [("none", 1.0), ("random", 0.1), ("heavy", 0.1)]
IDS = [f"{kind}-{density:g}" for kind, density in CASES]


@pytest.mark.parametrize("backend", usable_backends(None, "cpu"))
@pytest.mark.parametrize(("kind", "density"), CASES, ids=IDS)
def test_masked_adamw(benchmark, kind, density, backend):
    """A speed is never reported for a wrong result."""
    case = make_case("ddpm_cifar10", torch.float32, kind, density, "cpu")
    provider = checked_ours(case, backend)
    assert provider.match
    benchmark(provider.step)


@pytest.mark.parametrize("provider", ["torch_fused", "gradmask_fused"])
def test_baseline(benchmark, provider):
    case = make_case("ddpm_cifar10", torch.float32, "random", 0.1, "cpu")
    benchmark(baselines(case)[provider]().step)


@pytest.mark.parametrize("operation", ["gather", "scatter", "ema"])
def test_salient_copies(benchmark, operation):
    """What release_grads and weight averaging cost beside the step."""
    backend = backends.select("auto", "cpu")
    case = make_case("ddpm_cifar10", torch.float32, "heavy", 0.1, "cpu")
    dense = [param.detach() for param in case.params.values()]
    indices = [mask.flatten().nonzero().flatten().int() for mask in case.masks.values()]
    vectors = [torch.zeros(positions.numel()) for positions in indices]
    calls = {
        "gather": lambda: backend.gather_salient_(dense, indices, vectors),
        "scatter": lambda: backend.scatter_salient_(dense, indices, vectors),
        "ema": lambda: backend.ema_salient_(vectors, dense, indices, 0.999),
    }
    benchmark(calls[operation])
