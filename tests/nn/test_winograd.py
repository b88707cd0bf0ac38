"""Winograd's convolutions against float64, and where torch's stay."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast import unfuse_
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn import winograd
from pecker_fast.nn.accelerate import winograd_
from pecker_fast.nn.skipping import SlicedWinogradConv2d, skip_frozen_
from pecker_fast.nn.winograd import WinogradConv2d, running_winograd, use_winograd_

pytestmark = pytest.mark.skipif(
    winograd.unavailable() is not None, reason=str(winograd.unavailable())
)

# (N, C, O, H, W): tiles of 4 and of 2, cut at the edges; in the last two more channels than a group
# of transformed weights or of sums holds, and in the first of these several blocks of tiles.
SHAPES = [
    (1, 8, 16, 1, 1),
    (2, 16, 16, 2, 2),
    (3, 32, 48, 4, 4),
    (1, 24, 16, 5, 9),
    (2, 16, 32, 7, 7),
    (3, 64, 64, 14, 14),
    (1, 40, 16, 14, 3),
    (2, 32, 16, 33, 17),
    (1, 400, 512, 18, 13),
    (1, 128, 1040, 4, 4),
]


def problem(images, channels, outputs, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = normal(images, channels, height, width)
    weight = normal(outputs, channels, 3, 3) / (3 * channels**0.5)
    return x, weight, normal(outputs), normal(images, outputs, height, width)


def gradients(x, weight, bias, grad, function):
    """Output and gradients of a convolution, in float64."""
    leaves = [tensor.detach().requires_grad_(True) for tensor in (x, weight, bias)]
    output = function(*leaves)
    return [
        tensor.double() for tensor in (output.detach(), *torch.autograd.grad(output, leaves, grad))
    ]


def exact(x, weight, bias, grad):
    doubles = (tensor.double() for tensor in (x, weight, bias, grad))
    return gradients(*doubles, lambda *leaves: F.conv2d(*leaves, padding=1))


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_agrees(shape):
    """Rounding: 1e-6 for each of a transform's and a sum's steps, some of which add up.

    A tap or a border that is missing is an error of 1e-2 or more.
    """
    case = problem(*shape)
    assert winograd.fits(*case[:2])
    found = gradients(*case, winograd.convolution)
    for ours, expected in zip(found, exact(*case), strict=True):
        assert error(ours, expected) < 4e-6


def test_twice_the_rounding_of_torch():
    case = problem(4, 64, 64, 14, 14)
    expected = exact(*case)
    ours = gradients(*case, winograd.convolution)
    torchs = gradients(*case, lambda *leaves: F.conv2d(*leaves, padding=1))
    for mine, theirs, value in zip(ours, torchs, expected, strict=True):
        assert error(mine, value) < 4 * error(theirs, value)


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "sliced", "transposed"])
def test_layouts_change_no_bit(layout):
    x, weight, bias, grad = problem(2, 16, 32, 7, 6)
    expected = gradients(x, weight, bias, grad, winograd.convolution)
    if layout == "channels_last":
        x, weight, grad = (
            tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight, grad)
        )
    elif layout == "expanded":  # a gradient of ones, as of a sum
        grad = grad[:1, :1, :1, :1].expand_as(grad)
        expected = gradients(x, weight, bias, grad.contiguous(), winograd.convolution)
    elif layout == "sliced":
        x = torch.cat([x, x], 1)[:, 16:]
        bias = torch.stack([bias, bias], 1)[:, 0]
    else:
        weight = weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    found = gradients(x, weight, bias, grad, winograd.convolution)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_threads_change_no_bit(shape):
    case = problem(*shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(*case, winograd.convolution))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_give_the_same_bits(shape, monkeypatch):
    from pecker_fast import _C

    known = _C.winograd_instruction_sets()
    if len(known) < 2:
        pytest.skip(f"this CPU has {known} only")
    case = problem(*shape)
    results = []
    for name in known:
        monkeypatch.setattr(winograd, "_instruction_set", lambda name=name: name)
        results.append(gradients(*case, winograd.convolution))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradients_of_gradients_are_torchs():
    def second(function):
        torch.manual_seed(0)
        x, weight = (
            torch.randn(shape, requires_grad=True) for shape in ((2, 16, 5, 5), (16, 16, 3, 3))
        )
        output = function(x, weight, None)
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, weight))

    expected = second(lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1))
    for found, value in zip(second(winograd.convolution), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-3 * float(value.abs().max()))


# ---- modules


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, padding=1, **options)
    )


def test_a_network_and_back():
    plain = network()
    x = torch.randn(2, 4, 9, 9)
    before, state = plain(x), copy.deepcopy(plain.state_dict())
    found = winograd_(plain)
    assert list(found.switched.values()) == [1]
    assert winograd_(plain) == found  # harmless
    assert [type(module) for module in plain] == [WinogradConv2d, nn.SiLU, WinogradConv2d]
    after = plain(x)
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    for twin in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(twin(x), after)
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    unfuse_(plain)
    assert [type(module) for module in plain] == [nn.Conv2d, nn.SiLU, nn.Conv2d]
    assert torch.equal(plain(x), before)


def test_for_a_while():
    plain = network()
    x = torch.randn(2, 4, 9, 9)
    before = plain(x)
    with running_winograd(plain):
        assert not torch.equal(plain(x), before)
    assert torch.equal(plain(x), before)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "circular"},
        {"bias": True},  # nothing unusual, but float64 and autocast below
    ],
    ids=str,
)
def test_what_does_not_fit_stays_torchs(options):
    ours, plain = (network(**options) for _ in range(2))
    for module in ours:
        if type(module) is nn.Conv2d:
            module.__class__ = WinogradConv2d
    x = torch.randn(2, 4, 9, 9)
    if options == {"bias": True}:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours(x), plain(x))
        ours, plain, x = ours.double(), plain.double(), x.double()
        assert torch.equal(ours(x), plain(x))
    else:
        expected = plain(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(ours(x), expected)


def test_off_by_the_environment(monkeypatch):
    monkeypatch.setenv(winograd.SWITCH, "0")
    plain = network()
    assert winograd.SWITCH in str(winograd_(plain))
    with running_winograd(plain):
        assert type(plain[0]) is nn.Conv2d


@pytest.mark.parametrize("rows", [[], [3], [0, 5, 31], list(range(17))], ids=len)
def test_frozen_rows_have_no_gradient(rows):
    full = network()
    use_winograd_(full)
    sliced = copy.deepcopy(full)
    indices = {
        name: torch.arange(p.numel(), dtype=torch.int32) for name, p in full.named_parameters()
    }
    each = full[2].weight[0].numel()
    indices["2.weight"] = torch.tensor([row * each for row in rows], dtype=torch.int32)
    shapes = {name: p.shape for name, p in full.named_parameters()}
    skip_frozen_(sliced, SaliencyMask(indices, shapes))
    assert type(sliced[2]) is SlicedWinogradConv2d
    if not rows:
        for each_network in (full, sliced):
            each_network[2].weight.requires_grad_(False)
    x = torch.randn(2, 4, 9, 9)
    outputs = [each_network(x) for each_network in (full, sliced)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for (name, ours), expected in zip(sliced.named_parameters(), full.parameters(), strict=True):
        if name == "2.weight" and rows:
            frozen = [row for row in range(32) if row not in rows]
            assert torch.equal(ours.grad[rows], expected.grad[rows])
            assert not ours.grad[frozen].any()
        elif ours.requires_grad:
            torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-5, atol=1e-4)
    skip_frozen_(sliced, None)
    assert type(sliced[2]) is WinogradConv2d


def test_operations_are_counted_and_faked():
    from torch._subclasses.fake_tensor import FakeTensorMode

    counts = []
    for change in (lambda net: None, use_winograd_):
        net = network()
        change(net)
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(2, 4, 9, 9)).sum().backward()
        counts.append(counter.get_total_flops())
        with FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.randn(2, 16, 9, 9, requires_grad=True)
            output = net[2](x)
            output.sum().backward()
            assert output.shape == (2, 32, 9, 9) and x.grad.shape == x.shape
    assert counts[0] == counts[1]


def test_in_place_changes_are_noticed():
    """Of the weights: nothing about them is kept. Of what a graph has saved: torch refuses."""
    net = network()
    use_winograd_(net)
    x = torch.randn(2, 4, 9, 9)
    before = net(x)
    with torch.no_grad():
        net[2].weight.mul_(2)
    assert not torch.equal(net(x), before)
    output = net(x)
    with torch.no_grad():
        net[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_compiled_code_has_torchs():
    net = network()
    use_winograd_(net)
    x = torch.randn(2, 4, 9, 9)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    compiled(x).sum().backward()
    assert net[2].weight.grad is not None
