"""The gated unit: the reference and the kernels against float64, the module against diffusers'."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from norms import assert_near

from pecker_fast.nn import operations, reference
from pecker_fast.nn.attention import FusedGEGLU

# Of one rounding, as in test_operations.py.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("implementation", [reference, operations], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 70, 2100), (1, 1, 2)], ids=str)
def test_against_float64(shape, dtype, implementation, device):
    product = (torch.randn(shape, device=device) * 2).to(dtype).requires_grad_()
    wide = product.detach().double().requires_grad_()
    y = implementation.geglu(product)
    hidden, gate = wide.chunk(2, dim=-1)
    expected = hidden * gate * (1 + torch.erf(gate / 2**0.5)) / 2
    assert y.dtype == dtype and y.is_contiguous()
    assert_near(y, expected.detach(), TOLERANCES[dtype])
    dy = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, product, dy)
    (wanted,) = torch.autograd.grad(expected, wide, dy.double())
    assert grad.dtype == dtype
    assert_near(grad, wanted, TOLERANCES[dtype])


def test_keeps_the_product_alone(device):
    product = torch.randn(2, 7, 8, device=device, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, id):
        operations.geglu(product)
    assert kept == [product.data_ptr()]


def test_the_module_is_diffusers(device):
    plain = GEGLU(6, 10).to(device)
    fused = copy.deepcopy(plain)
    fused.__class__ = FusedGEGLU
    x = torch.randn(2, 9, 6, device=device)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-6)
    y = torch.randn(9, 6, device=device)  # of two dimensions: the reference's
    torch.testing.assert_close(fused(y), plain(y), rtol=1e-5, atol=1e-6)
