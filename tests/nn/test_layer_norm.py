"""Layer norm behind a residual sum: reference and kernels against float64, the block's passes."""

from __future__ import annotations

import copy

import pytest
import torch
from norms import assert_near
from unets import transformer

from pecker_fast import PeckerError, fuse_
from pecker_fast.nn import operations, reference
from pecker_fast.nn.attention import FusedTransformerBlock

# Of one rounding, as in test_operations.py; the sum is rounded before it is normalised.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
EPS = 1e-5


def leaf(shape, dtype, device, mean=0.0):
    return (torch.randn(shape, device=device) + mean).to(dtype).requires_grad_()


def oracle(x, weight, bias, add):
    """y and the sum in float64, of leaves that are made here."""
    wide = [t if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    total = wide[0]
    if add is not None:
        # Rounded as it is stored; the summands' gradients are that of the sum.
        rounded = (x.detach() + add.detach()).double()
        total = total + (rounded - x.detach().double())
    deviation = total - total.mean(-1, keepdim=True)
    scale = (deviation.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return deviation * scale * wide[1] + wide[2], total, wide


@pytest.fixture(params=["one tile", "many programs"])
def tiles(request, device, monkeypatch):
    """Tiles of 64 elements, at most 2 programs with partial sums: loops are taken."""
    if request.param == "many programs":
        from pecker_fast.kernels import layer_norm

        monkeypatch.setattr(layer_norm, "_ELEMENTS", 64)
        monkeypatch.setattr(layer_norm, "_MOST_PROGRAMS", 2)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("implementation", [reference, operations], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("shape", "added", "used"),
    [((2, 5, 20), True, True), ((1, 3, 33), False, True), ((1, 9, 8), True, False)],
    ids=["sum", "without a sum", "sum not used again"],
)
def test_against_float64(shape, added, used, dtype, implementation, device):
    x = leaf(shape, dtype, device, mean=2.0)
    weight, bias = leaf(shape[2:], torch.float32, device), leaf(shape[2:], torch.float32, device)
    add = leaf(shape, dtype, device) if added else None
    y, total = implementation.layer_norm(x, weight, bias, EPS, add)
    expected, wide_total, wide = oracle(x, weight, bias, add)
    assert y.dtype == total.dtype == dtype
    assert_near(y, expected.detach(), TOLERANCES[dtype])
    assert torch.equal(total, x if add is None else x + add)
    dy, other = torch.randn_like(y), torch.randn_like(total)
    loss = (y * dy).sum() + (total * other).sum() * used
    leaves = [x, weight, bias] + [add] * added
    found = torch.autograd.grad(loss, leaves)
    wanted = torch.autograd.grad(
        (expected * dy.double()).sum() + (wide_total * other.double()).sum() * used, wide
    )
    for grad, want, of in zip(found, [*wanted, wanted[0]], leaves, strict=False):
        assert grad.dtype == of.dtype
        assert_near(grad, want, TOLERANCES[dtype])


def test_summands_of_two_dtypes_and_what_need_not_learn(device):
    x, add = leaf((1, 2, 8), torch.float32, device), leaf((1, 2, 8), torch.bfloat16, device)
    weight, bias = torch.ones(8, device=device), leaf(8, torch.bfloat16, device)
    y, total = operations.layer_norm(x, weight, bias, EPS, add)
    assert torch.equal(total, x + add) and y.dtype == torch.float32
    y.sum().backward(retain_graph=True)
    assert weight.grad is None and bias.grad.tolist() == [2.0] * 8
    assert (x.grad.dtype, add.grad.dtype) == (torch.float32, torch.bfloat16)
    x.grad = add.grad = None
    total.sum().backward()  # nothing depends on y
    assert x.grad.unique().tolist() == add.grad.unique().tolist() == [1.0]


def test_what_does_not_fit(device):
    x, ones = torch.ones(1, 2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(PeckerError, match=r"layer_norm: add must have shape \(1, 2, 8\)"):
        operations.layer_norm(x, ones, ones, EPS, x[:, :1])
    long = torch.ones(1, 1, 8200, device=device)  # the reference's
    y, _ = operations.layer_norm(long, long[0, 0], long[0, 0], EPS)
    assert torch.equal(y, long)


def test_a_block_adds_its_last_branch_alone(device):
    """Of the three sums and, backward, the four gradients that meet, one and none are torch's."""
    case = transformer(linear=True)
    fuse_(case.module)
    [block] = case.module.transformer_blocks
    assert type(block) is FusedTransformerBlock
    adds = []

    class Adds(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.native_layer_norm):
                adds.append(func)
            return func(*args, **(kwargs or {}))

    tokens = torch.randn(1, 4, block.dim, device=device, requires_grad=True)
    text = torch.randn(1, 3, block.attn2.to_k.in_features, device=device)
    with Adds():
        block(tokens, encoder_hidden_states=text).sum().backward()
    counted = len(adds)
    hooked = copy.deepcopy(block)
    hooked.norm2.register_forward_hook(lambda *_: None)  # is to see the norm's own output
    adds.clear()
    with Adds():
        hooked(tokens, encoder_hidden_states=text).sum().backward()
    # diffusers' own: two sums more, three norms, three gradients that meet.
    assert len(adds) == counted + 2 + 3 + 3
