"""Accelerated U-Nets compute and train as diffusers' own, in fewer passes."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch  # noqa: F401  # diffusers 0.33 uses it without importing it
import torch
from unets import (
    DEVICE,
    UNETS,
    Case,
    LayoutCopies,
    assert_no_worse,
    class_unet,
    convert,
    double,
    errors,
    leaves,
    mid,
    on_device,
    resnet,
    result,
    run,
    shake_,
    text_unet,
)

from pecker_fast import MaskedAdamW, SaliencyMask, fuse_
from pecker_fast.nn.skipping import skip_frozen_

pytestmark = pytest.mark.slow

with_kernels = pytest.mark.usefixtures("device")  # skips where they cannot run


@with_kernels
@pytest.mark.parametrize("name", UNETS)
def test_unet_in_float32(name: str) -> None:
    case = UNETS[name]()
    shake_(case.module)
    oracle = run(double(case))
    fuse_(case.module)
    found = errors(run(Case(case.module, convert(case.inputs, torch.float32))), oracle)
    # 2^-24 through some thirty layers and back; plain float32 is at 3e-6 too.
    assert max(found.values()) <= 1e-5


@with_kernels
@pytest.mark.parametrize("name", ["class", "text"])
def test_unet_in_bfloat16(name: str) -> None:
    case = UNETS[name]()
    shake_(case.module).to(torch.bfloat16)
    case = Case(case.module, convert(case.inputs, torch.bfloat16))
    oracle = run(double(case))
    plain = errors(run(Case(copy.deepcopy(case.module), case.inputs)), oracle)
    fuse_(case.module)
    found = errors(run(Case(case.module, convert(case.inputs, torch.bfloat16))), oracle)
    assert_no_worse(found, plain)


@with_kernels
@pytest.mark.parametrize("order", ["optimizer first", "acceleration first"])
def test_masked_adamw_with_released_gradients(order: str) -> None:
    """Two steps as on the torch path; frozen entries keep their bits."""
    case = mid("UNetMidBlock2D")
    shake_(case.module)
    generator = torch.Generator().manual_seed(1)
    mask = SaliencyMask.from_scores(
        {
            name: torch.rand(parameter.shape, generator=generator).to(DEVICE)
            for name, parameter in case.module.named_parameters()
        },
        density=0.2,
    )
    start = copy.deepcopy(case.module.state_dict())
    ends = []
    for fused in (False, True):
        unet = copy.deepcopy(case.module)
        if fused and order == "acceleration first":
            fuse_(unet)
        optimizer = MaskedAdamW(
            unet.named_parameters(), lr=1e-3, eps=1e-3, mask=mask, release_grads=True
        )
        if fused and order == "optimizer first":
            fuse_(unet)
        for _ in range(2):
            leaves(Case(unet, case.inputs)())[0].square().mean().backward()
            optimizer.step()
        ends.append(unet.state_dict())
    for name, salient in on_device(mask.to_dense()).items():
        assert torch.equal(ends[1][name][~salient], start[name][~salient]), name
        # Gradients agree to 1e-5 of their tensor's norm; eps keeps Adam from magnifying that.
        change = ends[0][name] - start[name]
        assert (ends[1][name] - ends[0][name]).abs().max() <= 1e-3 * change.abs().max() + 1e-7, name
    assert all(parameter.grad is None for parameter in unet.parameters())


@with_kernels
def test_with_sliced_weight_gradients() -> None:
    """`skip_frozen_` changes the class of convolutions inside; fused blocks call through it."""
    case = resnet(8, 16)
    weights = {
        name: torch.zeros_like(parameter) for name, parameter in case.module.named_parameters()
    }
    weights["conv1.weight"][3] = 1.0
    weights["conv_shortcut.weight"][5] = 1.0
    mask = SaliencyMask.from_scores(
        weights, density=(8 * 9 + 8) / sum(map(torch.numel, weights.values()))
    )
    oracle = run(double(case))
    skip_frozen_(case.module, mask)
    report = fuse_(case.module)
    assert report.switched == {"ResnetBlock2D": 1}
    run(Case(case.module, convert(case.inputs, torch.float32)))
    for name, row in (("conv1", 3), ("conv_shortcut", 5)):
        grad = case.module.get_parameter(f"{name}.weight").grad
        expected = oracle[f"layer {name}"][: grad.numel()].view_as(grad)
        assert grad.flatten(1).any(dim=1).nonzero().tolist() == [[row]]
        assert (grad[row] - expected[row]).norm() <= 1e-5 * expected[row].norm()


@with_kernels
def test_statistics_do_not_outlive_a_change_in_place() -> None:
    """FreeU writes into the hidden states whose statistics the block before has left there."""
    case = text_unet()
    oracle = double(case)
    fuse_(case.module)
    for each in (case.module, oracle.module):
        each.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    found, expected = result(case), result(oracle)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("on_reference")
def test_gradient_checkpointing() -> None:
    case = text_unet()
    oracle = run(double(case))
    fuse_(case.module)
    case.module.enable_gradient_checkpointing()
    found = run(Case(case.module, convert(case.inputs, torch.float32)))
    assert max(errors(found, oracle).values()) <= 1e-5


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("name", UNETS)
def test_no_layout_copies_forward_or_backward(name: str) -> None:
    case = UNETS[name]()
    case.inputs["sample"] = case.inputs["sample"].to(memory_format=torch.channels_last)
    case.module.to(memory_format=torch.channels_last)
    counts = []
    for _ in range(2):
        with LayoutCopies() as copies:
            leaves(case())[0].square().sum().backward()
        counts.append(copies.count)
        fuse_(case.module)
    assert counts[0] >= 4 and counts[1] == 0


@with_kernels
@pytest.mark.parametrize("gradients", [True, False])
def test_statistics_are_taken_once(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes of their own only behind convolutions that no residual sum ends."""
    from pecker_fast.kernels import channels_last

    case = class_unet()
    fuse_(case.module)
    taken = []
    take = channels_last.statistics
    monkeypatch.setattr(
        channels_last, "statistics", lambda x, partials: taken.append(x) or take(x, partials)
    )
    with torch.set_grad_enabled(gradients):
        case()
    # Of 25 inputs of norms: 8 between two convolutions; conv_in, the downsampler, the upsampler.
    assert len(taken) == 8 + 3
