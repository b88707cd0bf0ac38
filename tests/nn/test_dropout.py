"""Dropout inside the normalisation: drawn from a seed, never stored, the same in backward."""

from __future__ import annotations

import math

import pytest
import torch
from norms import Case, assert_near, gradients, oracle

from pecker_fast.nn import operations


def kept(x, dropout, skip=None):
    """Which elements of y are kept: with bias 100 none is 0 by itself."""
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    weight = torch.ones(channels, device=x.device)
    bias = torch.full((channels,), 100.0, device=x.device)
    y = operations.group_norm(x, weight, bias, 1, 1e-5, skip=skip, silu=False, dropout=dropout).y
    return y != 0


@pytest.mark.parametrize(
    ("silu", "dropout"), [(False, 0.75), pytest.param(True, 0.1, marks=pytest.mark.slow)]
)
def test_backward_drops_what_forward_dropped(silu, dropout, device, small_tiles):
    case = Case(4, 4, (2, 3, 3), skip_channels=20, add="sample", silu=silu)
    x, skip, weight, bias, add = leaves = case.inputs(torch.float32, torch.float32, device)
    result = operations.group_norm(
        x, weight, bias, 4, 1e-5, skip=skip, add=add, silu=silu, dropout=dropout
    )
    expected, wide = oracle(leaves, 4, silu, kept=result.y != 0, dropout=dropout)
    assert_near(result.y, expected, 1e-5)
    dy = torch.randn_like(result.y)
    actual = gradients(result.y, [None, None], dy, [None, None], leaves)
    wanted = gradients(expected, [None, None], dy, [None, None], wide)
    for grad, target in zip(actual, wanted, strict=True):
        assert_near(grad, target, 1e-5)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_how_many_are_kept(dropout, device):
    count = 2 * 32 * 16 * 16
    mask = kept(torch.randn(2, 32, 16, 16, device=device), dropout)
    deviation = math.sqrt(dropout * (1 - dropout) / count)
    assert abs(mask.double().mean() - (1 - dropout)) < 4 * deviation


def test_draws_are_independent(device):
    """Neighbours in any direction, samples, and the four pixels of one draw agree half the time."""
    mask = kept(torch.randn(2, 32, 16, 16, device=device), 0.5)
    pairs = {
        "samples": (mask[0], mask[1]),
        "channels": (mask[:, :-1], mask[:, 1:]),
        "rows": (mask[:, :, :-1], mask[:, :, 1:]),
        **{f"pixels {i} apart": (mask[..., :-i], mask[..., i:]) for i in (1, 2, 3, 4)},
    }
    for name, (a, b) in pairs.items():
        assert abs((a == b).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(a.numel()), name


def test_the_global_seed_decides(device):
    x = torch.randn(2, 8, 5, 5, device=device)
    torch.manual_seed(3)
    first, second = kept(x, 0.5), kept(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(kept(x, 0.5), first) and not torch.equal(first, second)
    assert torch.equal(kept(x, 0.5), second)


def test_tiles_do_not_decide(device, request):
    """A mask belongs to a seed, however the tensor is cut up."""
    x, skip = (torch.randn(2, channels, 3, 3, device=device) for channels in (4, 20))
    torch.manual_seed(3)
    large = kept(x, 0.5, skip=skip)
    request.getfixturevalue("small_tiles")
    torch.manual_seed(3)
    assert torch.equal(kept(x, 0.5, skip=skip), large)


def test_extremes(device):
    x = torch.randn(2, 8, 3, 3, device=device).requires_grad_()
    weight = torch.ones(8, device=device)
    state = torch.get_rng_state()
    operations.group_norm(x, weight, weight, 2, 1e-5, dropout=0.0)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn for nothing
    y = operations.group_norm(x, weight, weight, 2, 1e-5, dropout=1.0).y
    y.sum().backward()
    assert not y.any() and not x.grad.any()
