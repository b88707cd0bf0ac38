"""Weight gradients of salient rows: those they would have had, and zeros; nothing else changes.

The oracle is always the ordinary layer, which torch differentiates.
"""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast import MaskedAdamW
from pecker_fast.errors import PeckerError
from pecker_fast.mask import SaliencyMask
from pecker_fast.nn.skipping import (
    SLICE_BELOW,
    SlicedConv2d,
    SlicedLayer,
    SlicedLinear,
    conv2d,
    linear,
    skip_frozen_,
    slice_weight_gradient_,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "distill"))  # for toys.py

# The same products, added in another order: sums of up to 300 terms of either sign.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry, since single entries may cancel to nearly 0."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def mask_of(network, salient):
    """The mask with the given bool tensors (anything they broadcast from); the rest is frozen."""
    dense = {
        name: salient.get(name, torch.tensor(False)).expand(param.shape)
        for name, param in network.named_parameters()
    }
    return SaliencyMask.from_dense(dense)


def rows_of(count, *salient):
    """(count, 1) bool, True in the given rows."""
    dense = torch.zeros(count, 1, dtype=torch.bool)
    dense[list(salient)] = True
    return dense


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
    mask = mask_of(sliced, {"0.bias": torch.tensor(True)})
    assert skip_frozen_(sliced, mask) == (SlicedLayer("0", 0, 5),)
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


# ---- Networks


def small_network():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 16, 8),
    )


def test_only_layers_with_few_salient_rows_are_sliced():
    network = small_network()
    weight = torch.zeros(8, 2, 3, 3, dtype=torch.bool)
    weight[2, 1, 0, 2] = weight[7, 0, 0, 0] = True  # single entries make their rows salient
    mask = mask_of(
        network,
        {
            "0.weight": weight,
            "2.weight": rows_of(8, *range(6))[:, :, None, None],
            "4.bias": torch.tensor(True),
        },
    )
    assert 6 / 8 >= SLICE_BELOW
    keys = list(network.state_dict())
    assert skip_frozen_(network, mask) == (SlicedLayer("0", 2, 8),)
    assert [type(network[i]) for i in (0, 2, 4)] == [SlicedConv2d, nn.Conv2d, nn.Linear]
    assert network[0].salient_rows.tolist() == [2, 7]
    assert list(network.state_dict()) == keys
    assert isinstance(network[0], nn.Conv2d)
    # Another mask takes the place of the first, None undoes it, and both may be repeated.
    other = mask_of(
        network, {"2.weight": rows_of(8, 5)[:, :, None, None], "4.weight": rows_of(8, 0, 1)}
    )
    for _ in range(2):
        assert skip_frozen_(network, other) == (SlicedLayer("2", 1, 8), SlicedLayer("4", 2, 8))
        assert [type(network[i]) for i in (0, 2, 4)] == [nn.Conv2d, SlicedConv2d, SlicedLinear]
        assert network[2].salient_rows.tolist() == [5]
    for nothing in (None, SaliencyMask.full(network), None):
        assert skip_frozen_(network, nothing) == ()
        assert [type(network[i]) for i in (0, 2, 4)] == [nn.Conv2d, nn.Conv2d, nn.Linear]
        assert not any(hasattr(module, "salient_rows") for module in network.modules())


def test_a_network_that_is_one_layer():
    layer = nn.Linear(3, 4)
    assert skip_frozen_(layer, mask_of(layer, {"weight": rows_of(4, 3)})) == (
        SlicedLayer("", 1, 4),
    )
    assert layer.salient_rows.tolist() == [3]


def test_a_mask_of_another_model_changes_nothing():
    network = small_network()
    mask = mask_of(network, {"0.weight": rows_of(8, 1)[:, :, None, None]})
    skip_frozen_(network, mask)
    with pytest.raises(PeckerError, match=r"0\.weight"):
        skip_frozen_(network, SaliencyMask.full({"0.weight": torch.zeros(3, 3)}))
    assert type(network[0]) is SlicedConv2d


def test_layers_that_compute_something_else_are_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    layers = nn.ModuleDict(
        {
            "groups": nn.Conv2d(4, 4, 3, groups=2),
            "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            "same": nn.Conv2d(4, 4, 3, padding="same"),
            "transposed": nn.ConvTranspose2d(4, 4, 3),
            "one_dimensional": nn.Conv1d(4, 4, 3),
            "subclass": Scaled(4, 4),
            "embedding": nn.Embedding(4, 4),
            "norm": nn.GroupNorm(1, 4),
        }
    )
    mask = SaliencyMask.random(layers, 0.5, seed=0, granularity="out_channel")
    before = {name: type(module) for name, module in layers.items()}
    assert skip_frozen_(layers, mask) == ()
    assert {name: type(module) for name, module in layers.items()} == before
    assert not slice_weight_gradient_(layers["groups"], torch.tensor([0]))


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


def test_hooks_and_released_gradients_see_an_ordinary_gradient():
    network = small_network()
    mask = SaliencyMask.random(network, 0.3, seed=1, granularity="out_channel")
    other, x = copy.deepcopy(network), torch.randn(2, 2, 4, 4)
    shapes = []
    network[0].weight.register_hook(lambda grad: shapes.append(grad.shape))
    for net, sliced in ((network, True), (other, False)):
        layers = skip_frozen_(net, mask if sliced else None)
        assert bool(layers) == sliced
        optimizer = MaskedAdamW(
            net.named_parameters(), lr=1e-2, weight_decay=0.1, mask=mask, release_grads=sliced
        )
        for _ in range(3):
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert shapes == [network[0].weight.shape] * 3
    for name, param in network.named_parameters():
        # Steps of Adam are up to lr = 1e-2, whatever the size of the gradient; a thousandth of
        # one is more than the rounding of the gradients here.
        torch.testing.assert_close(param, other.get_parameter(name), rtol=0, atol=1e-5)


def tiny_unet_and_call():
    from toys import tiny_unet

    unet = tiny_unet().double()
    x, t, label = (
        torch.randn(2, 1, 8, 8, dtype=torch.float64),
        torch.tensor(9),
        torch.tensor([0, 3]),
    )
    return unet, lambda net: net(x, t, label).sample


def test_gradients_of_a_unet():
    unet, call = tiny_unet_and_call()
    mask = SaliencyMask.random(unet, 0.3, seed=2, granularity="out_channel")
    gradients = []
    for used in (None, mask):
        layers = skip_frozen_(unet, used)
        unet.zero_grad(set_to_none=True)
        torch.manual_seed(5)  # of the dropout
        call(unet).square().sum().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    convolutions = [name for name, _, _ in layers if "conv" in name]
    assert len(convolutions) > 5 and len(layers) > len(convolutions) + 3
    sliced = {f"{name}.weight" for name, _, _ in layers}
    for name, salient in mask.to_dense().items():
        expected, actual = (found[name] for found in gradients)
        # Errors of 1e-16 an operation grow through the layers.
        scale = expected.abs().max()
        assert (actual - expected)[salient].abs().max() <= 1e-12 * scale if salient.any() else True
        if name in sliced:
            assert torch.count_nonzero(actual[~salient]) == 0
            assert torch.count_nonzero(expected[~salient]) > 0


def test_nothing_runs_below_the_earliest_salient_layer():
    unet, call = tiny_unet_and_call()
    late = {
        n: torch.tensor(True) for n, _ in unet.named_parameters() if n.startswith("up_blocks.1")
    }
    mask = mask_of(unet, late)
    for name, param in unet.named_parameters():
        param.requires_grad_(len(mask.indices[name]) > 0)
    assert skip_frozen_(unet, mask) == ()  # whole tensors: nothing to slice
    differentiated = set()

    def remember(name):
        def hook(module, arguments, output):
            output = output if isinstance(output, torch.Tensor) else output[0]
            if isinstance(output, torch.Tensor) and output.requires_grad:
                differentiated.add(name.split(".")[0] + "." + name.split(".")[1])

        return hook

    for name, module in unet.named_modules():
        if name.count(".") >= 1:
            module.register_forward_hook(remember(name))
    call(unet).sum().backward()
    assert differentiated == {"up_blocks.1"}
    assert {n for n, p in unet.named_parameters() if p.grad is not None} == late.keys()


def test_an_iteration_of_the_trainer_makes_the_same_update():
    from toys import tiny_unet, toy_objective

    from pecker_fast.distill import Objective, PeckerTrainer

    settings = {
        "iterations": 1,
        "mask.kind": "random",
        "mask.granularity": "out_channel",
        "mask.apply": "both",
        "optimizer.beta1": 0.9,
        "optimizer.weight_decay": 0.1,
        # With the usual 1e-8 a gradient that is all rounding, as those of biases before a norm are,
        # would move its entry by a part of lr in any direction.
        "optimizer.eps": 1.0,
    }
    toy = toy_objective(settings)
    torch.manual_seed(1)
    teacher = tiny_unet()
    results = []
    for sliced in (False, True):
        objective = Objective(
            copy.deepcopy(teacher), toy.schedule, toy.conditions, toy.config, (1, 8, 8)
        )
        networks = copy.deepcopy(teacher), copy.deepcopy(teacher)
        trainer = PeckerTrainer(objective, generator=networks[0], pseudo_score=networks[1])
        for network in networks:
            layers = skip_frozen_(network, trainer.mask if sliced else None)
            assert (len(layers) > 10) == sliced
        list(trainer.run())
        assert trainer.verify_frozen().frozen_changed == 0
        results.append([dict(network.named_parameters()) for network in networks])
    for plain, sliced in zip(*results, strict=True):
        moved = 0.0
        for name, param in plain.items():
            # Two roundings of a weight of size 1; moves are up to 5e-4.
            torch.testing.assert_close(sliced[name], param, rtol=0, atol=2 * 2.0**-24)
            moved = max(moved, (param - teacher.get_parameter(name)).abs().max().item())
        assert moved > 4e-4
