"""The scalars that `advance` computes on the device, against exact powers, over a long training."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from pecker_fast.backends.kernels import StepTables
from pecker_fast.backends.work import Hyperparameters

LR, EPS, DECAY = 3e-4, 1e-8, 0.1
STEPS = [1, 2, 3, 10, 999, 50_000, 2**24 - 1]  # the last one float32 can count to


def exact_correction(beta: float, step: int) -> float:
    """1 - beta^step, rounded once. A power that is too small to matter is not worked out."""
    if beta == 0.0 or step * math.log2(beta) < -80:
        return 1.0
    return float(1 - Fraction(beta) ** step)


@pytest.fixture
def advance(backend):
    if backend.name in ("reference", "cpu"):
        pytest.skip(f"{backend.name} computes them on the host")
    kernels = backend.module.kernels

    def run(betas, is_double, steps, starts, found_inf=None):
        n, device = len(steps), backend.device
        entries = torch.tensor([[0, i, 1, int(is_double)] for i in range(n)])
        rows = torch.zeros(n, 12, dtype=torch.float64, device=device)
        counts = torch.tensor(steps, dtype=torch.float32, device=device)
        first = torch.tensor(starts, dtype=torch.float32, device=device)
        grads = torch.zeros(n, dtype=torch.int64, device=device)
        tables = StepTables(entries.to(device), entries, first, counts, rows, grads)
        group = Hyperparameters(LR, *betas, EPS, DECAY, True, True, None)
        infinite = None if found_inf is None else torch.tensor(found_inf, device=device)
        addresses = kernels.advance(tables, np.ones(n, dtype=np.int64), [group], infinite)
        assert addresses.tolist() == [1] * n
        numbers = rows if is_double else rows.view(torch.float32)[:, :12]
        return numbers.cpu(), counts.tolist()

    return run


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.5, 0.99999)], ids=str)
@pytest.mark.parametrize("is_double", [False, True], ids=["float32", "float64"])
def test_scalars(advance, betas, is_double):
    starts = [0, 0, 1, 0, 17, 0, 0]
    rows, counts = advance(betas, is_double, [s - 1 for s in STEPS], starts)
    assert counts == STEPS
    rtol = 1e-10 if is_double else 2**-23  # powers by products; float32 rounds once
    for row, step, start in zip(rows.double(), STEPS, starts, strict=True):
        t = step - start
        weight = 1 - betas[0]
        expected = [1 - LR * DECAY, weight, 1 - weight, betas[1], 1 - betas[1], EPS]
        expected.append(LR / exact_correction(betas[0], t))
        expected.append(math.sqrt(exact_correction(betas[1], t)))
        expected += [math.inf, -1.0, 1.0, 0.0]
        torch.testing.assert_close(
            row, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0.0
        )


def test_an_infinity_leaves_counts_and_scalars_alone(advance):
    rows, counts = advance((0.9, 0.999), False, [4.0], [0.0], found_inf=1.0)
    assert counts == [4.0]
    assert not rows.any()
