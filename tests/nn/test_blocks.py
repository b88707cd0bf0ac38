"""Fused blocks against diffusers' own in double precision: outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from unets import (
    BLOCKS,
    DEVICE,
    FLOAT32,
    Case,
    assert_no_worse,
    attention,
    convert,
    double,
    down,
    errors,
    fused,
    leaves,
    plain,
    resnet,
    run,
    shake_,
    transformer,
    up,
)

from pecker_fast.nn.accelerate import fuse_, unfuse_
from pecker_fast.nn.blocks import FusedResnetBlock2D
from pecker_fast.nn.layers import projected

pytestmark = pytest.mark.usefixtures("device")  # skips where the kernels cannot run


def assert_parity(case: Case, dtype: torch.dtype) -> None:
    shake_(case.module).to(dtype)
    case = Case(case.module, convert(case.inputs, dtype))
    oracle = run(double(case))
    found = errors(run(fused(case, dtype)), oracle)
    if dtype == torch.bfloat16:
        assert_no_worse(found, errors(run(plain(case, dtype)), oracle))
    else:
        assert not {name: error for name, error in found.items() if not error <= FLOAT32}


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", BLOCKS)
def test_parity(name: str, dtype: torch.dtype) -> None:
    assert_parity(BLOCKS[name](), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["resnet", "AttnUpBlock2D", "attention", "transformer"])
def test_autocast_with_float32_weights(name: str, stream: torch.dtype) -> None:
    """Activations come in bfloat16 within a U-Net, in float32 where a block is called alone."""
    case = BLOCKS[name]()
    shake_(case.module)
    case = Case(case.module, convert(convert(case.inputs, torch.bfloat16), stream))
    oracle = run(double(case))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        results = run(fused(case, torch.float32, stream)), run(plain(case, torch.float32, stream))
    assert {key: value.dtype for key, value in results[0].items()} == {
        key: value.dtype for key, value in results[1].items()
    }
    assert_no_worse(*(errors(result, oracle) for result in results))


def test_float64_goes_through_the_reference() -> None:
    case = up("AttnUpBlock2D")
    shake_(case.module).double()
    case = Case(case.module, convert(case.inputs, torch.float64))
    # 2^-53 and the same few hundred terms.
    assert max(errors(run(fused(case, torch.float64)), run(double(case))).values()) <= 1e-12


def test_outputs_stay_channels_last() -> None:
    """Given NCHW too: the next block then finds what its kernels read."""
    for name in ("resnet", "attention", "transformer", "upsample", "CrossAttnUpBlock2D"):
        for output in leaves(fused(BLOCKS[name](), torch.float32)()):
            assert output.is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.parametrize("kind", ["UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D"])
def test_up_blocks_concatenate_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = up(kind)
    calls = []
    concatenate = torch.cat

    def counted(tensors, *args, **kwargs):
        if tensors[0].ndim == 4:  # activations; attention joins its weights
            calls.append(tensors)
        return concatenate(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "cat", counted)
    plain(case, torch.float32)()
    assert len(calls) == 1
    calls.clear()
    fused(case, torch.float32)()
    assert not calls


def test_large_batch_is_upsampled_in_channels_last() -> None:
    """From 64 images on, diffusers makes them NCHW first."""
    block = BLOCKS["upsample"]().module
    fuse_(block)
    x = torch.randn(64, 8, 2, 2).to(DEVICE, memory_format=torch.channels_last)
    formats = []
    convolve = torch.nn.functional.conv2d

    def observed(x, *args):
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return convolve(x, *args)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", observed)
        block(x)
    assert formats == [True]


def dropped(case: Case, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return run(case)


@pytest.mark.parametrize("name", ["resnet", pytest.param("UpBlock2D", marks=pytest.mark.slow)])
def test_dropout(name: str) -> None:
    case = resnet(dropout=0.3) if name == "resnet" else up("UpBlock2D", dropout=0.3)
    first, again, other = (dropped(fused(case, torch.float32), seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["output 0"], other["output 0"])
    case.module.eval()
    still = dropped(fused(case, torch.float32), 1)
    assert max(errors(still, run(double(case))).values()) <= FLOAT32


def test_dropout_probability_is_read_at_each_call() -> None:
    case = fused(resnet(dropout=0.3), torch.float32)
    case.module.dropout.eval()
    assert torch.equal(case(), case())
    case.module.dropout.train()
    assert not torch.equal(case(), case())
    case.module.dropout.p = 0.0
    assert torch.equal(case(), case())


@pytest.mark.parametrize("name", ["resnet-shortcut", "AttnUpBlock2D", "transformer"])
def test_frozen_parameters_and_inputs(name: str) -> None:
    """Every second parameter frozen, no gradient of the image: the others are as before."""
    case = BLOCKS[name]()
    for index, parameter in enumerate(case.module.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    oracle, found = double(case), fused(case, torch.float32)
    for each in (oracle, found):
        leaves(each.inputs)[0].requires_grad_(False)
    expected = run(oracle)
    assert max(errors(run(found), expected).values()) <= FLOAT32
    frozen = [p for p in found.module.parameters() if not p.requires_grad]
    assert frozen and all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("name", ["resnet-shortcut", "AttnDownBlock2D", "CrossAttnUpBlock2D"])
def test_no_grad(name: str) -> None:
    case = BLOCKS[name]()
    expected, found = leaves(double(case)()), fused(case, torch.float32)
    with torch.no_grad():
        outputs = leaves(found())
    for output, value in zip(outputs, expected, strict=True):
        assert not output.requires_grad
        assert (output - value).norm() <= FLOAT32 * value.norm()


# Calls that a fused block must hand to diffusers' code: what is switched on, and where.


def _hook(module: torch.nn.Module) -> None:
    module.register_forward_hook(lambda module, args, output: 2 * output)


def _checkpoint(module: torch.nn.Module) -> None:
    module.gradient_checkpointing = True  # and what ModelMixin sets along with it
    module._gradient_checkpointing_func = lambda call, *args: torch.utils.checkpoint.checkpoint(
        call, *args, use_reentrant=False
    )


def _free_u(module: torch.nn.Module) -> None:
    module.s1, module.s2, module.b1, module.b2 = 0.9, 0.2, 1.2, 1.4
    module.resolution_idx = 0


class DoubledAttention(AttnProcessor2_0):
    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


# "FreeU" writes into its inputs, which must then not be leaves that require grad.
SPECIAL = {
    "hook on a convolution": (resnet, lambda block: _hook(block.conv1)),
    "hook on a norm": (resnet, lambda block: _hook(block.norm2)),
    "hook on the activation": (resnet, lambda block: _hook(block.nonlinearity)),
    "hook on the block": (resnet, _hook),
    "hook within an up block": (lambda: up("UpBlock2D"), lambda block: _hook(block.resnets[0])),
    "hook on a layer within an up block": (
        lambda: up("AttnUpBlock2D"),
        lambda block: _hook(block.resnets[0].conv_shortcut),
    ),
    "hook on an upsampling convolution": (
        BLOCKS["upsample"],
        lambda block: _hook(block.conv),
    ),
    "hook on a projection": (attention, lambda block: _hook(block.to_out[0])),
    "hook on a query": (attention, lambda block: _hook(block.to_q)),
    "hook on a transformer's projection": (
        lambda: transformer(linear=False),
        lambda block: _hook(block.proj_in),
    ),
    "processor": (attention, lambda block: block.set_processor(DoubledAttention())),
    "checkpointing": (lambda: up("CrossAttnUpBlock2D"), _checkpoint),
    "checkpointing below": (lambda: down("DownBlock2D"), _checkpoint),
    "checkpointed transformer": (lambda: transformer(linear=True), _checkpoint),
    "FreeU": (lambda: up("UpBlock2D"), _free_u),
    "FreeU beside attention": (lambda: up("CrossAttnUpBlock2D"), _free_u),
}


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("name", SPECIAL)
def test_special_calls_do_what_diffusers_does(name: str) -> None:
    make, switch_on = SPECIAL[name]
    case = make()
    found, oracle = fused(case, torch.float32), double(case)
    for each in (found, oracle):
        switch_on(each.module)
        if name.startswith("FreeU"):
            for tensor in leaves(each.inputs):
                tensor.requires_grad_(False)
    assert max(errors(run(found), run(oracle)).values()) <= FLOAT32


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("name", ["UpBlock2D", "CrossAttnUpBlock2D", "transformer"])
def test_checkpointed_blocks_run_again_in_backward(name: str) -> None:
    case = fused(BLOCKS[name](), torch.float32)
    _checkpoint(case.module)
    inside = case.module.transformer_blocks if name == "transformer" else case.module.resnets
    calls = []
    watched = inside[0] if name == "transformer" else inside[0].time_emb_proj
    # Before: the second run stops as soon as it has what the backward pass needs.
    watched.register_forward_pre_hook(lambda *args: calls.append(args))
    run(case)
    assert len(calls) == 2


@pytest.mark.usefixtures("on_reference")
def test_pre_hook_in_an_up_block_sees_the_whole_input() -> None:
    case = fused(up("UpBlock2D"), torch.float32)  # 12 and 8 channels
    shapes = []
    case.module.resnets[0].register_forward_pre_hook(
        lambda module, args: shapes.append(tuple(args[0].shape))
    )
    case()
    assert shapes == [(2, 20, 6, 6)]


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("given", ["mask", "bias", "nothing"])
def test_text_masks(given: str) -> None:
    """A 0/1 mask is made a bias by diffusers; a bias goes to the transformer's blocks as it is."""
    case = up("CrossAttnUpBlock2D")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], device=DEVICE)
    if given == "mask":
        case.inputs["encoder_attention_mask"] = mask
    elif given == "bias":
        case.inputs["encoder_attention_mask"] = ((mask - 1.0) * 10000.0)[:, None]
    found = run(fused(case, torch.float32))
    assert max(errors(found, run(double(case))).values()) <= FLOAT32


@pytest.mark.usefixtures("on_reference")
def test_upsample_size() -> None:
    for kind in ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D"):
        case = up(kind)
        case.inputs["upsample_size"] = (11, 13)
        found = errors(run(fused(case, torch.float32)), run(double(case)))
        assert max(found.values()) <= FLOAT32


@pytest.mark.usefixtures("on_reference")
def test_one_embedding_for_the_whole_batch() -> None:
    case = resnet(8, 16)
    case.inputs["temb"] = case.inputs["temb"][:1]
    found = errors(run(fused(case, torch.float32)), run(double(case)))
    assert max(found.values()) <= FLOAT32


@pytest.mark.usefixtures("on_reference")
def test_skip_without_a_shortcut_convolution() -> None:
    """Both sources in one block that keeps the number of channels."""
    case = resnet(12, 12)
    found, oracle = fused(case, torch.float32), double(case)
    found.inputs["skip"] = found.inputs["input_tensor"][:, 5:].detach().requires_grad_()
    found.inputs["input_tensor"] = found.inputs["input_tensor"][:, :5].detach().requires_grad_()
    result, expected = run(found), run(oracle)
    whole = torch.cat([result.pop("input 0"), result.pop("input 2")], dim=1)
    result = {**result, "input 0": whole}
    assert max(errors(result, expected).values()) <= FLOAT32


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"time_embedding_norm": "scale_shift"}, "time embedding by scale_shift"),
        ({"up": True}, "resampling inside"),
        ({"down": True, "kernel": "sde_vp"}, "resampling inside"),
        ({"non_linearity": "gelu"}, "activation GELU"),
    ],
)
def test_residual_blocks_that_stay(options: dict, reason: str) -> None:
    case = resnet(**options)
    report = fuse_(case.module)
    assert report.left[f"ResnetBlock2D ({reason})"] == 1
    assert report.switched["GroupNorm"] == 2  # its norms run fused
    assert_parity(resnet(**options), torch.float32)


def test_hooked_layers_are_reported() -> None:
    case = resnet()
    _hook(case.module.conv1)
    report = fuse_(case.module)
    assert report.left == {"ResnetBlock2D (hooks or a replaced layer inside)": 1}
    unfuse_(case.module)
    assert not isinstance(case.module, FusedResnetBlock2D)


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "convolutions", "a hook"])
def test_projections_of_the_same_tokens(kind: str) -> None:
    """Joined or apart, with the same values and gradients; a hook is called."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    bias = kind != "linear without bias"
    layers: list[Any] = [
        nn.Conv2d(8, n, 1) if kind == "convolutions" else nn.Linear(8, n, bias=bias)
        for n in (4, 8, 8)
    ]
    layers = [layer.double() for layer in layers]
    seen = []
    if kind == "a hook":
        layers[1].register_forward_hook(lambda *_: seen.append(1))
    found = projected(tokens, layers)
    expected = [F.linear(tokens, layer.weight.flatten(1), layer.bias) for layer in layers]
    inputs = [tokens, *(param for layer in layers for param in layer.parameters())]
    for part, right in zip(found, expected, strict=True):
        torch.testing.assert_close(part, right)
    gradients = [
        torch.autograd.grad(sum(part.square().sum() for part in parts), inputs, retain_graph=True)
        for parts in (found, expected)
    ]
    for gradient, right in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, right)
    assert len(seen) == (kind == "a hook")
    joined = len({part.untyped_storage().data_ptr() for part in found}) == 1
    assert joined == (kind != "a hook")
