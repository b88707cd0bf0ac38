"""Regressions of the optimizer step: pytest benchmarks --benchmark-enable --benchmark-compare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for presets.py and step_time.py

from step_time import baselines, gate, make_mask, make_params, ours

from pecker_fast import backends

CASES = [("none", 1.0), ("random", 0.1), ("heavy", 0.1)]
IDS = [f"{kind}-{density:g}" for kind, density in CASES]


@pytest.fixture(scope="module")
def params():
    torch.manual_seed(0)
    return make_params("ddpm_cifar10", torch.float32, "cpu")


@pytest.mark.parametrize(("kind", "density"), CASES, ids=IDS)
def test_masked_adamw(benchmark, params, kind, density):
    """The backend that "auto" picks; a speed is never reported for a wrong result."""
    masks = make_mask(kind, params, density)
    assert gate(params, masks, "auto")
    optimizer = ours(params, masks, "auto")
    benchmark.extra_info["backend"] = optimizer.backend
    benchmark(optimizer.step)


@pytest.mark.parametrize("provider", ["torch_fused", "gradmask_fused"])
def test_baseline(benchmark, params, provider):
    benchmark(baselines(params, make_mask("random", params, 0.1))[provider])


@pytest.mark.parametrize("operation", ["gather", "scatter", "ema"])
def test_salient_copies(benchmark, params, operation):
    """What release_grads and weight averaging cost beside the step."""
    backend = backends.select("auto", "cpu")
    masks = make_mask("heavy", params, 0.1)
    dense = [param.detach() for param in params.values()]
    indices = [mask.flatten().nonzero().flatten().int() for mask in masks.values()]
    vectors = [torch.zeros(positions.numel()) for positions in indices]
    calls = {
        "gather": lambda: backend.gather_salient_(dense, indices, vectors),
        "scatter": lambda: backend.scatter_salient_(dense, indices, vectors),
        "ema": lambda: backend.ema_salient_(vectors, dense, indices, 0.999),
    }
    benchmark(calls[operation])
