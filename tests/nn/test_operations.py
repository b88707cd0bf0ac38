"""The fused operations and their reference against plain torch in float64, gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch
from norms import Case, assert_near, gradients, oracle
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.nn import operations, reference

# The interpreter's exp of what is not an element: nothing is stored of it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Relative to the largest element, and of norms. float32: what issue and README promise. The others:
# half an ulp (2^-9, 2^-12) for rounding once, and as much again for all that comes before.
TOLERANCES = {FP32: 1e-5, BF16: 2**-8, FP16: 2**-11}
IMPLEMENTATIONS = {"reference": reference, "fused": operations}


CASES = {
    "4 a group": Case(16, 4, (2, 5, 7)),
    "12 a group, no silu": Case(24, 2, (1, 3, 3), add="channel", silu=False),
    "10 a group, border inside": Case(12, 4, (2, 4, 5), skip_channels=28, add="sample"),
    "16 a group, shortcuts": Case(24, 4, (2, 3, 5), skip_channels=40, shortcuts=True),
    "32 a group, shortcuts": Case(64, 2, (3, 2, 9), add="sample", shortcuts=True),
    "one pixel": Case(16, 4, (2, 1, 1), add="channel", silu=False),
    "odd channels": Case(3, 1, (1, 1, 33), skip_channels=2),
    "group of one": Case(6, 6, (2, 4, 4), silu=False),
    "not channels_last": Case(
        8, 2, (2, 4, 3), skip_channels=8, shortcuts=True, memory_format=torch.contiguous_format
    ),
}


def check(implementation, case: Case, dtype, parameter_dtype, device) -> None:
    leaves = x, skip, weight, bias, add = case.inputs(dtype, parameter_dtype, device)
    result = implementation.group_norm(
        x, weight, bias, case.groups, 1e-5, skip=skip, add=add, silu=case.silu
    )
    expected, wide = oracle(leaves, case.groups, case.silu)
    assert result.y.dtype == x.dtype and result.y.shape == expected.shape
    assert torch.equal(result.x, x) and (skip is None or torch.equal(result.skip, skip))
    assert_near(result.y, expected, TOLERANCES[dtype])

    dy = torch.randn_like(result.y)
    used = [torch.randn_like(t) if t is not None and case.shortcuts else None for t in (x, skip)]
    actual = gradients(result.y, result[1:], dy, used, leaves)
    wanted = gradients(expected, wide[:2], dy, used, wide)
    for leaf, grad, target in zip(leaves, actual, wanted, strict=True):
        if leaf is not None:
            assert grad.dtype == leaf.dtype and grad.shape == leaf.shape
            # Of the reference, autograd adds up gradients that are rounded already.
            rounded_twice = case.shortcuts and implementation is reference
            assert_near(grad, target, TOLERANCES[leaf.dtype] * (1 + rounded_twice))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_float32(case, implementation, device):
    check(IMPLEMENTATIONS[implementation], CASES[case], FP32, FP32, device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("types", [(BF16, FP32), (BF16, BF16), (FP16, FP32)], ids=str)
@pytest.mark.parametrize("case", ["10 a group, border inside", "32 a group, shortcuts"])
def test_low_precision(case, types, implementation, device):
    check(IMPLEMENTATIONS[implementation], CASES[case], *types, device)


@pytest.mark.parametrize(
    "case",
    ["10 a group, border inside", pytest.param("16 a group, shortcuts", marks=pytest.mark.slow)],
)
def test_many_tiles(case, device, small_tiles):
    check(operations, CASES[case], FP32, FP32, device)


@pytest.mark.parametrize(("mean", "channels"), [(100.0, 8), (1000.0, 128)])
def test_mean_of_many_deviations(mean, channels, device):
    """Plain sums of squares lose the variance: torch itself is 5e-4 off at 100, on a CPU.

    A channel's mean of 1000 is known to half an ulp, 3e-5; over many channels that averages out,
    as long as nothing is rounded after the average.
    """
    case = Case(channels, 2, (2, 5, 5), add="sample", silu=mean == 100.0, mean=mean)
    check(operations, case, FP32, FP32, device)


def test_activations_of_two_dtypes(device):
    case = CASES["10 a group, border inside"]
    x, skip, weight, bias, _ = leaves = case.inputs(BF16, FP32, device)
    leaves[1].data = leaves[1].data.float()
    result = operations.group_norm(x, weight, bias, case.groups, 1e-5, skip=skip)
    expected, wide = oracle([*leaves[:4], None], case.groups, True)
    dy = torch.randn_like(result.y)
    actual = gradients(result.y, result[1:], dy, [None, None], leaves[:4])
    wanted = gradients(expected, wide[:2], dy, [None, None], wide[:4])
    assert result.y.dtype == actual[0].dtype == BF16 and actual[1].dtype == FP32
    for grad, target in zip(actual, wanted, strict=True):
        assert_near(grad, target, TOLERANCES[grad.dtype])


# ---- which gradients are needed


@pytest.mark.parametrize("needed", ["x", "skip", "weight", "bias", "add", "x weight", "skip add"])
@pytest.mark.parametrize("add", ["channel", "sample"])
def test_some_inputs_are_frozen(needed, add, device, monkeypatch):
    from pecker_fast.kernels import group_norm_backward

    launches = []
    launch = group_norm_backward.apply
    monkeypatch.setattr(
        group_norm_backward, "apply", lambda *args: launches.append(0) or launch(*args)
    )
    case = Case(6, 2, (2, 3, 3), skip_channels=4, add=add)
    leaves = x, skip, weight, bias, added = case.inputs(FP32, FP32, device)
    for name, leaf in zip(["x", "skip", "weight", "bias", "add"], leaves, strict=True):
        leaf.requires_grad_(name in needed.split())
    result = operations.group_norm(x, weight, bias, 2, 1e-5, skip=skip, add=added)
    assert result.x.requires_grad == x.requires_grad
    assert result.skip.requires_grad == skip.requires_grad
    expected, wide = oracle(leaves, 2, True)
    dy = torch.randn_like(result.y)
    actual = gradients(result.y, [None, None], dy, [None, None], leaves)
    wanted = gradients(expected, [None, None], dy, [None, None], wide)
    for grad, target in zip(actual, wanted, strict=True):
        assert_near(grad, target, 1e-5)
    # The pass over the activations is made for those of them that need it.
    assert len(launches) == x.requires_grad + skip.requires_grad


def test_only_the_returned_inputs_are_used(device):
    x, skip, weight, bias, _ = Case(4, 2, (2, 3, 3), skip_channels=4).inputs(FP32, FP32, device)
    result = operations.group_norm(x, weight, bias, 2, 1e-5, skip=skip)
    dx = torch.randn_like(x)
    grads = torch.autograd.grad(result.x, (x, skip, weight), dx, allow_unused=True)
    assert torch.equal(grads[0], dx) and grads[1] is None and grads[2] is None


def test_without_gradients(device):
    x, _, weight, bias, _ = Case(8, 2, (2, 3, 3)).inputs(BF16, FP32, device)
    result = operations.group_norm(x, weight, bias, 2, 1e-5)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            again = operations.group_norm(x, weight, bias, 2, 1e-5)
            total = operations.residual_add(again.y, [again.x])
            last = operations.group_norm(total, weight, bias, 2, 1e-5)
        assert again.x is x and not again.y.requires_grad and not last.y.requires_grad
        assert torch.equal(again.y, result.y) and last.y.isfinite().all()


def test_autocast(device):
    """Activations stay as the convolutions left them; parameters and their gradients float32."""
    x, _, weight, bias, _ = Case(8, 2, (2, 3, 3)).inputs(BF16, FP32, device)
    with torch.autocast(device.type, BF16):
        result = operations.group_norm(x, weight, bias, 2, 1e-5)
        out = operations.residual_add(result.y, [result.x], bias)
    out.sum().backward()
    assert result.y.dtype == out.dtype == x.grad.dtype == BF16 and weight.grad.dtype == FP32


def test_a_second_derivative_is_refused(device):
    x, _, weight, bias, _ = Case(4, 2, (1, 2, 2)).inputs(FP32, FP32, device)
    y = operations.group_norm(x, weight, bias, 2, 1e-5).y
    [grad] = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_saves_the_inputs_and_little_else(device):
    case = Case(16, 2, (2, 8, 8), skip_channels=16, add="sample")
    x, skip, weight, bias, add = case.inputs(FP32, FP32, device)
    saved = {}
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    )
    with keep:
        operations.group_norm(x, weight, bias, 2, 1e-5, skip=skip, add=add, dropout=0.5)
    inputs = {t.untyped_storage().data_ptr() for t in (x, skip, weight, bias)}
    others = [t for address, t in saved.items() if address not in inputs]
    # Four numbers a sample and channel; the seed.
    assert sorted(t.numel() for t in others) == [1, 4 * 2 * 32]


# ---- residual_add


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "types", [(FP32, FP32, FP32), (BF16, BF16, FP32), (FP16, FP32, FP16), (BF16, FP32, BF16)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("count", "divisor", "bias"), [(1, 1.0, True), (2, 2**0.5, True),
                                                        (1, 3.0, False)])  # fmt: skip
def test_residual_add(count, divisor, bias, types, implementation, device):
    shape = (3, 10, 5, 3)
    operands = [torch.randn(shape, device=device).to(types[0]).requires_grad_()]
    operands += [
        torch.randn(shape, device=device).to(types[1]).requires_grad_() for _ in range(count)
    ]
    vector = torch.randn(10, device=device).to(types[2]).requires_grad_() if bias else None
    leaves = [*operands, *([vector] if bias else [])]
    function = IMPLEMENTATIONS[implementation].residual_add
    out = function(operands[0], operands[1:], vector, divisor)
    assert out.dtype == types[0]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = sum(t[None, :, None, None] if t.dim() == 1 else t for t in wide) / divisor
    assert_near(out, expected, TOLERANCES[types[0]])
    dout = torch.randn_like(out)
    actual = torch.autograd.grad(out, leaves, dout)
    for grad, leaf, target in zip(
        actual, leaves, torch.autograd.grad(expected, wide, dout.double()), strict=True
    ):
        assert grad.dtype == leaf.dtype
        # The gradient is that of `out`, in its dtype.
        assert_near(grad, target, max(TOLERANCES[types[0]], TOLERANCES[leaf.dtype]))


def test_residual_add_copies_no_gradient(device):
    hidden, shortcut = (torch.randn(2, 4, 3, 3, device=device).requires_grad_() for _ in range(2))
    out = operations.residual_add(hidden, [shortcut])
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, [hidden, shortcut], dout)
    assert {grad.data_ptr() for grad in grads} == {dout.data_ptr()}


@pytest.mark.parametrize("frozen", [{0}, {1}, {2}, {0, 1}])
def test_residual_add_with_frozen_operands(frozen, device, small_tiles):
    leaves = [torch.randn(2, 20, 3, 5, device=device), torch.randn(2, 20, 3, 5, device=device)]
    leaves.append(torch.randn(20, device=device))
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i not in frozen)
    out = operations.residual_add(leaves[0], [leaves[1]], leaves[2], 2.0)
    dout = torch.randn_like(out)
    out.backward(dout)
    for leaf in leaves[:2]:
        assert_near(leaf.grad, dout.double() / 2 if leaf.requires_grad else None, 1e-6)
    wanted = dout.double().sum((0, 2, 3)) / 2
    assert_near(leaves[2].grad, wanted if leaves[2].requires_grad else None, 1e-6)


def test_sums_over_many_rows(device):
    from pecker_fast.kernels import channels_last

    table = torch.randn(700, 2, 5, device=device)
    first, second = torch.empty(5, device=device), torch.empty(5, dtype=BF16, device=device)
    channels_last.column_sums(table, first, second, 0.5)
    assert_near(first, table[:, 0].double().sum(0) / 2, 1e-6)
    assert_near(second, table[:, 1].double().sum(0) / 2, TOLERANCES[BF16])


# ---- what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(5)}, r"weight must have shape \(6,\), got \(5,\)"),
        ({"bias": torch.ones(6, 1)}, r"bias must have shape \(6,\), got \(6, 1\)"),
        ({"groups": 4}, "6 channels cannot be 4 groups"),
        ({"groups": 0}, "6 channels cannot be 0 groups"),
        ({"skip": torch.ones(2, 2, 3, 4)}, r"skip must have shape \(2, 2, 3, 3\), got"),
        ({"skip": torch.ones(2, 2)}, "skip must have shape"),
        ({"add": torch.ones(1, 6)}, r"add must have shape \(2, 6\), got \(1, 6\)"),
        ({"add": torch.ones(7)}, r"add must have shape \(6,\), got \(7,\)"),
        ({"dropout": 1.5}, "dropout must be a probability, got 1.5"),
    ],
)
def test_sizes_that_do_not_belong_together(changes, message, device):
    arguments = {"weight": torch.ones(6), "bias": torch.ones(6), "groups": 2, **changes}
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(PeckerError, match=message):
        operations.group_norm(torch.ones(2, 6, 3, 3, device=device), eps=1e-5, **arguments)


def test_operands_of_another_shape(device):
    x = torch.ones(2, 6, 3, 3, device=device)
    with pytest.raises(PeckerError, match=r"shortcut must have shape \(2, 6, 3, 3\), got"):
        operations.residual_add(x, [x[:1]])
    with pytest.raises(PeckerError, match=r"bias must have shape \(6,\), got \(1,\)"):
        operations.residual_add(x, [x], torch.ones(1, device=device))


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 5), torch.ones(0, 4, 2, 2)],
)
def test_what_the_kernels_do_not_take_goes_to_the_reference(x):
    weight, bias = torch.rand(4, dtype=x.dtype), torch.rand(4, dtype=x.dtype)
    assert not operations.runs_triton(x)
    if x.dim() == 4:
        actual = operations.group_norm(x, weight, bias, 2, 1e-5, add=bias)
        assert torch.equal(actual.y, reference.group_norm(x, weight, bias, 2, 1e-5, add=bias).y)
    assert torch.equal(operations.residual_add(x, [x, x]), reference.residual_add(x, [x, x]))


def test_three_shortcuts_go_to_the_reference(device):
    x = torch.randn(1, 2, 3, 3, device=device)
    assert torch.equal(operations.residual_add(x, [x] * 3), reference.residual_add(x, [x] * 3))


def test_bits_are_reproducible(device, small_tiles):
    def run() -> list[Tensor]:
        torch.manual_seed(5)
        case = Case(12, 2, (1, 3, 3), skip_channels=28, add="channel")
        x, skip, weight, bias, add = case.inputs(BF16, FP32, device)
        result = operations.group_norm(x, weight, bias, 2, 1e-5, skip=skip, add=add, dropout=0.3)
        out = operations.residual_add(result.y, [result.y], bias)
        return [out, *torch.autograd.grad(out.float().square().sum(), [x, skip, weight, bias, add])]

    assert all(itertools.starmap(torch.equal, zip(run(), run(), strict=True)))
