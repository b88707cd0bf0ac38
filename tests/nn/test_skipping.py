"""Weight gradients of salient rows: those they would have had, and zeros; nothing else changes.

The oracle is always the ordinary layer, which torch differentiates.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast.nn.skipping import SlicedLinear, conv2d, linear, slice_weight_gradient_

# The same products, added in another order: sums of up to 300 terms of either sign.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry, since single entries may cancel to nearly 0."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def backward(network, x, *, seed=0):
    """Output, gradient of the input, gradients of the parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
    network.zero_grad(set_to_none=True)
    output = network(x)
    torch.manual_seed(seed)
    output.backward(torch.randn_like(output))
    return output.detach(), x.grad, {n: p.grad for n, p in network.named_parameters()}


CASES = {
    "conv": (lambda: nn.Conv2d(3, 5, 3, padding=1), (2, 3, 7, 6)),
    "conv stride": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(0, 1)), (3, 3, 7, 6)),
    "conv dilation": (lambda: nn.Conv2d(2, 5, 3, dilation=2, padding=2), (1, 2, 8, 9)),
    "conv 1x1 without bias": (lambda: nn.Conv2d(4, 5, 1, bias=False), (2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear, tokens": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "linear, one vector, no bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
}


@pytest.mark.parametrize("rows", [(0,), (1, 4), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_layer(case, dtype, rows):
    make, shape = CASES[case]
    plain, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    sliced = copy.deepcopy(plain)
    assert slice_weight_gradient_(sliced, torch.tensor(rows))
    expected, actual = backward(plain, x), backward(sliced, x)
    assert torch.equal(actual[0], expected[0])
    assert_close(actual[1], expected[1], TOLERANCES[dtype])
    assert actual[2].keys() == expected[2].keys()
    if "bias" in actual[2]:
        assert_close(actual[2]["bias"], expected[2]["bias"], TOLERANCES[dtype])
    weight, frozen = actual[2]["weight"], [row for row in range(5) if row not in rows]
    salient = list(rows)
    assert_close(weight[salient], expected[2]["weight"][salient], TOLERANCES[dtype])
    assert torch.count_nonzero(weight[frozen]) == 0


@pytest.mark.parametrize(("multiple", "computed"), [(2, 2), (3, 3), (4, 4), (32, 5)])
@pytest.mark.parametrize("case", ["conv", "linear, tokens"])
def test_rows_are_filled_up_for_the_product_and_stay_0(case, multiple, computed):
    """Two of five rows are salient; tensor cores want multiples."""
    make, shape = CASES[case]
    plain, x = make().double(), torch.randn(shape, dtype=torch.float64)
    sliced = copy.deepcopy(plain)
    slice_weight_gradient_(sliced, torch.tensor([1, 4]), multiple)
    assert sliced.salient_rows.tolist() == [1, 4]
    assert sliced.product_rows.tolist() == [1, 4, 0, 2, 3][:computed]
    with Shapes() as shapes:
        actual = backward(sliced, x)[2]["weight"]
    assert computed in shapes.rows
    expected = backward(plain, x)[2]["weight"]
    assert_close(actual[[1, 4]], expected[[1, 4]], 1e-12)
    assert torch.count_nonzero(actual[[0, 2, 3]]) == 0


class Shapes(TorchDispatchMode):
    """Notes the rows of weight gradients that are computed."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution_backward.default and args[-1][1]:
            self.rows.append(len(out[1]))
        if func is torch.ops.aten.mm.default:
            self.rows.append(len(out))
        return out


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 5, 3), lambda: nn.Linear(6, 5)])
def test_no_salient_row_at_all(make):
    layer = make()
    x = torch.randn((2, 3, 4, 5) if isinstance(layer, nn.Conv2d) else (2, 6))
    expected = backward(layer, x)
    slice_weight_gradient_(layer, torch.tensor([], dtype=torch.int64))
    _, grad_x, grads = backward(layer, x)
    assert_close(grad_x, expected[1], 1e-6)
    assert grads["weight"].shape == layer.weight.shape
    assert torch.count_nonzero(grads["weight"]) == 0


@pytest.mark.parametrize("where", ["weight", "activations", "both"])
def test_channels_last(where):
    plain, x = nn.Conv2d(4, 6, 3, padding=1).double(), torch.randn(2, 4, 5, 7, dtype=torch.float64)
    if where != "activations":
        plain = plain.to(memory_format=torch.channels_last)
    if where != "weight":
        x = x.to(memory_format=torch.channels_last)
    sliced = copy.deepcopy(plain)
    slice_weight_gradient_(sliced, torch.tensor([1, 5]))
    expected, actual = backward(plain, x), backward(sliced, x)
    assert_close(actual[1], expected[1], 1e-12)
    weight = actual[2]["weight"]
    assert weight.stride() == plain.weight.stride()
    assert_close(weight[[1, 5]], expected[2]["weight"][[1, 5]], 1e-12)
    assert torch.count_nonzero(weight[[0, 2, 3, 4]]) == 0


# bf16 has 8 significant bits: one rounding of the result, one of a partial sum.
BF16 = 2 * 2.0**-8


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 5, 3), lambda: nn.Linear(6, 5)])
def test_autocast_and_bf16_weights(make, weights):
    plain = make().to(weights)
    x = torch.randn((2, 3, 6, 5) if isinstance(plain, nn.Conv2d) else (7, 6), dtype=weights)
    sliced = copy.deepcopy(plain)
    slice_weight_gradient_(sliced, torch.tensor([0, 3]))
    results = []
    for layer in (plain, sliced):
        leaf = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            output = layer(leaf)
        assert output.dtype == torch.bfloat16
        output.sum().backward()
        results.append((output, leaf.grad, layer.bias.grad, layer.weight.grad))
    for expected, actual in zip(*(result[:3] for result in results), strict=True):
        assert_close(actual.float(), expected.float(), BF16)
        assert actual.dtype == expected.dtype
    expected, actual = results[0][3], results[1][3]
    assert actual.dtype == weights
    assert_close(actual[[0, 3]].float(), expected[[0, 3]].float(), BF16)
    assert torch.count_nonzero(actual[[1, 2, 4]]) == 0


def test_autocast_leaves_float64_alone():
    layer = nn.Linear(3, 4).double()
    slice_weight_gradient_(layer, torch.tensor([1]))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 5, 3), lambda: nn.Linear(3, 5)])
def test_what_needs_no_gradient_gets_none(make):
    layer = make()
    slice_weight_gradient_(layer, torch.tensor([2]))
    x = torch.randn((2, 3, 4, 4) if isinstance(layer, nn.Conv2d) else (2, 3))
    with torch.no_grad():
        assert not layer(x).requires_grad
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is not None
    layer.zero_grad(set_to_none=True)
    layer.weight.requires_grad_(
        False
    )  # as in the phase in which the network is only passed through
    x.requires_grad_(True)
    output = layer(x)
    assert "Sliced" not in output.grad_fn.name()
    output.sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is not None
    layer.requires_grad_(False)
    assert not layer(x.detach()).requires_grad


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("input_learns", [False, True])
def test_a_convolution_of_which_the_bias_alone_learns(input_learns, autocast):
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True))
    sliced = copy.deepcopy(plain)
    slice_weight_gradient_(sliced[0], torch.tensor([], dtype=torch.int64))
    x, results = torch.randn(2, 3, 6, 6), []
    for network in (plain, sliced):
        network[0].weight.requires_grad_(False)
        leaf = x.clone().requires_grad_(input_learns)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            FlopCounterMode(display=False) as counter,
        ):
            output = network(leaf)
        output.sum().backward()
        results.append((output, network[0].bias.grad, leaf.grad))
        assert network[0].weight.grad is None
        assert counter.get_total_flops() == 2 * 2 * 16 * 5 * 27  # one convolution
    assert torch.equal(results[1][0], results[0][0])
    assert_close(results[1][1], results[0][1], BF16 if autocast else 1e-6)
    if input_learns:
        assert torch.equal(results[1][2], results[0][2])


def test_the_bias_gradient_needs_no_weight_gradient():
    layer = nn.Conv2d(3, 5, 3)
    slice_weight_gradient_(layer, torch.tensor([], dtype=torch.int64))
    layer.weight.requires_grad_(False)
    output, masks = layer(torch.randn(1, 3, 4, 4, requires_grad=True)), []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                masks.append(args[-1])
            return func(*args, **kwargs or {})

    with Watching():
        output.sum().backward()
    assert masks == [[True, False, False]]


def test_an_image_without_a_batch_takes_the_ordinary_way():
    layer, x = nn.Conv2d(3, 5, 3), torch.randn(3, 6, 6)
    expected = backward(layer, x)
    slice_weight_gradient_(layer, torch.tensor([2]))
    actual = backward(layer, x)
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(actual[2]["weight"], expected[2]["weight"])


def test_second_derivatives_are_refused():
    layer = nn.Linear(3, 4)
    slice_weight_gradient_(layer, torch.tensor([1]))
    loss = layer(torch.randn(2, 3)).square().sum()
    (grad,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_functional_entries_take_columns_of_the_weight_and_another_bias():
    # A fused block splits a convolution of two concatenated inputs, and adds its bias elsewhere.
    conv, x = nn.Conv2d(5, 6, 3, padding=1).double(), torch.randn(2, 5, 4, 4, dtype=torch.float64)
    conv(x).square().sum().backward()
    expected = conv.weight.grad
    for sliced in (False, True):
        conv.zero_grad(set_to_none=True)
        if sliced:
            slice_weight_gradient_(conv, torch.tensor([0, 4]))
        first = conv2d(x[:, :3], conv, conv.bias, conv.weight[:, :3])
        second = conv2d(x[:, 3:], conv, None, conv.weight[:, 3:])
        (first + second).square().sum().backward()
        assert_close(conv.weight.grad[[0, 4]], expected[[0, 4]], 1e-12)
        assert bool(conv.weight.grad[1].any()) != sliced
    fc, x = nn.Linear(4, 5).double(), torch.randn(3, 4, dtype=torch.float64)
    for sliced in (False, True):
        if sliced:
            slice_weight_gradient_(fc, torch.tensor([0]))
        assert torch.equal(linear(x, fc, None), x @ fc.weight.T)
        assert torch.equal(
            linear(x[:, :2], fc, fc.bias, fc.weight[:, :2]), fc(x * x.new_tensor([1, 1, 0, 0]))
        )
    reflecting = nn.Conv2d(5, 2, 3, padding=1, padding_mode="reflect")
    y = torch.randn(1, 5, 4, 4)
    assert torch.equal(conv2d(y, reflecting, reflecting.bias), reflecting(y))


def test_copies_and_pickles_stay_sliced():
    layer = nn.Linear(3, 4)
    slice_weight_gradient_(layer, torch.tensor([1]))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is SlicedLinear
        other(torch.randn(2, 3)).sum().backward()
        assert other.weight.grad[1].any() and not other.weight.grad[0].any()
        assert layer.weight.grad is None


def test_row_numbers_follow_the_network_to_another_device():
    layer = nn.Conv2d(3, 4, 3)
    slice_weight_gradient_(layer, torch.tensor([1]))
    layer.to("meta")
    layer(torch.empty(2, 3, 5, 5, device="meta")).sum().backward()
    assert layer.salient_rows.device.type == layer.weight.grad.device.type == "meta"
