"""fuse_ and unfuse_: all about a network that must not change."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch  # noqa: F401  # diffusers 0.33 uses it without importing it
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from unets import (
    DEVICE,
    UNETS,
    Case,
    class_unet,
    double,
    result,
    shake_,
    types,
)

from pecker_fast import PeckerError, fuse_, unfuse_
from pecker_fast.nn import operations, winograd
from pecker_fast.nn.blocks import FusedResnetBlock2D

EXPECTED = {
    "class": {
        "ResnetBlock2D": 8,
        "UpBlock2D": 1,
        "AttnUpBlock2D": 1,
        "Attention": 4,
        "Upsample2D": 1,
        "GroupNorm": 1,
    },
    "text": {
        "ResnetBlock2D": 8,
        "UpBlock2D": 1,
        "CrossAttnUpBlock2D": 1,
        "Transformer2DModel": 4,
        "BasicTransformerBlock": 4,
        "GEGLU": 4,
        "Upsample2D": 1,
        "GroupNorm": 1,
    },
}


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("name", EXPECTED)
def test_report_counts_everything_switched(name: str) -> None:
    unet = UNETS[name]().module
    first = fuse_(unet)
    assert first.switched == EXPECTED[name] and not first.left and first.reason is None
    switched = types(unet)
    assert fuse_(unet) == first  # harmless
    assert types(unet) == switched
    counts = ", ".join(f"{count} {kind}" for kind, count in EXPECTED[name].items())
    assert str(first) == f"fused: {counts}"


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("name", UNETS)
def test_undo_leaves_no_trace(name: str) -> None:
    case = UNETS[name]()
    shake_(case.module)
    unet = case.module
    before = types(unet), copy.deepcopy(unet.state_dict()), result(case)
    strides = [parameter.stride() for parameter in unet.parameters()]
    attributes = {key: set(module.__dict__) for key, module in unet.named_modules()}
    parameters = [id(parameter) for parameter in unet.parameters()]
    activation = unet.conv_act

    fuse_(unet)
    assert types(unet) != before[0]
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for each in (unet, copy.deepcopy(unet)):
        state = each.state_dict()
        assert list(state) == list(before[1])
        assert all(torch.equal(state[key], before[1][key]) for key in state)

    unfuse_(unet)
    unfuse_(unet)  # harmless
    assert types(unet) == before[0]
    assert [parameter.stride() for parameter in unet.parameters()] == strides
    assert [id(parameter) for parameter in unet.parameters()] == parameters
    assert {key: set(module.__dict__) for key, module in unet.named_modules()} == attributes
    assert unet.conv_act is activation
    assert torch.equal(result(case), before[2])


@pytest.mark.usefixtures("on_reference")
def test_channels_last_weights_stay_so() -> None:
    """Undoing restores the format a weight had, which may have been channels_last already."""
    unet = class_unet().module.to(memory_format=torch.channels_last)
    strides = [parameter.stride() for parameter in unet.parameters()]
    fuse_(unet)
    unfuse_(unet)
    assert [parameter.stride() for parameter in unet.parameters()] == strides


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
@pytest.mark.parametrize("name", ["class", "text"])
def test_copies_are_accelerated_and_can_be_undone(name: str, copied) -> None:
    case = UNETS[name]()
    shake_(case.module)
    plain = types(case.module)
    fuse_(case.module)
    twin = copied(case.module)
    assert types(twin) == types(case.module)
    assert torch.equal(result(Case(twin, case.inputs)), result(case))
    unfuse_(twin)
    assert types(twin) == plain
    assert types(case.module) != plain  # the original is not touched


@pytest.mark.usefixtures("on_reference")
def test_saved_as_the_class_it_is(tmp_path: Path) -> None:
    case = class_unet()
    fuse_(case.module)
    case.module.save_config(tmp_path / "accelerated")
    plain = copy.deepcopy(case.module)
    unfuse_(plain)
    # Not fused: older versions of diffusers refuse to save channels_last weights.
    plain.save_pretrained(tmp_path / "plain")
    configs = [
        json.loads((tmp_path / name / "config.json").read_text())
        for name in ("accelerated", "plain")
    ]
    assert configs[0] == configs[1] and configs[0]["_class_name"] == "UNet2DModel"
    loaded = UNet2DModel.from_pretrained(tmp_path / "plain", low_cpu_mem_usage=False)
    assert type(loaded.mid_block.resnets[0]) is ResnetBlock2D
    assert torch.equal(
        result(Case(loaded.train().to(DEVICE), case.inputs)), result(Case(plain, case.inputs))
    )


@pytest.mark.usefixtures("on_reference")
def test_modes_and_isinstance() -> None:
    unet = class_unet(dropout=0.5).module
    fuse_(unet)
    block = unet.mid_block.resnets[0]
    assert isinstance(block, ResnetBlock2D) and isinstance(block, FusedResnetBlock2D)
    unet.eval()
    assert not any(module.training for module in unet.modules())
    unfuse_(unet)
    assert not any(module.training for module in unet.modules() if module is not unet.conv_act)


def test_where_kernels_cannot_run_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "unavailable", lambda device: f"none on {device}")
    monkeypatch.setattr(winograd, "unavailable", lambda: "no AVX2")
    unet = class_unet().module
    before = types(unet)
    strides = [parameter.stride() for parameter in unet.parameters()]
    report = fuse_(unet)
    assert types(unet) == before
    assert [parameter.stride() for parameter in unet.parameters()] == strides
    assert str(report).startswith(f"not fused: none on {DEVICE}")
    assert not report.switched


def test_other_devices_are_refused() -> None:
    report = fuse_(class_unet().module.to("meta"))
    assert report.reason is not None and "meta" in report.reason


@pytest.mark.parametrize("function", [fuse_, unfuse_])
def test_not_a_module(function) -> None:
    with pytest.raises(PeckerError, match=r"must be a torch\.nn\.Module, got dict; for a pip"):
        function({})


@pytest.mark.usefixtures("on_reference")
def test_other_blocks_are_left_and_reported() -> None:
    """A U-Net of blocks without a fused form keeps them; norms and layouts gain anyway."""
    case = class_unet(
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32),  # these blocks choose their groups by their channels
    )
    shake_(case.module)
    expected = result(case)  # in float32: diffusers 0.33 cannot filter in float64
    report = fuse_(case.module)
    assert report.left["AttnSkipUpBlock2D (no fused form)"] == 1
    assert report.left["SkipUpBlock2D (no fused form)"] == 1
    assert report.left["ResnetBlock2D (resampling inside)"] == 2
    assert "on the torch path: " in str(report).splitlines()[1]
    # float32 on both sides, so 2^-24 twice through some forty layers.
    assert (result(case) - expected).norm() <= 2e-5 * expected.norm()


@pytest.mark.usefixtures("on_reference")
def test_scale_shift_keeps_the_residual_blocks() -> None:
    report = fuse_(class_unet(resnet_time_scale_shift="scale_shift").module)
    assert report.left["ResnetBlock2D (time embedding by scale_shift)"] == 8
    assert report.left["UpBlock2D (no fused residual block inside)"] == 1
    # The middle's attention has no norm in such a network.
    assert (
        report.switched["Attention"] == 3 and report.left["Attention (no group norm inside)"] == 1
    )
    assert report.switched["GroupNorm"] == 17


@pytest.mark.usefixtures("on_reference")
def test_subclasses_and_plain_networks() -> None:
    class Mine(ResnetBlock2D):
        pass

    mine = Mine(in_channels=8, temb_channels=4, groups=2)
    assert fuse_(mine).left == {"Mine (a class of its own)": 1}
    report = fuse_(nn.Sequential(nn.Linear(2, 2)))
    assert str(report) == "fused: nothing, no block of a known kind in it"
    norm = nn.GroupNorm(2, 4, affine=False)
    assert fuse_(norm).left == {"GroupNorm (no scale and shift)": 1}


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_at_the_output_norm(when: str) -> None:
    """They see the norm's output, not its SiLU; and what they return is activated, once."""
    case = class_unet()
    shake_(case.module)
    expected = double(case)
    seen = []
    for unet in (expected.module, case.module):
        if when == "after" and unet is case.module:
            fuse_(unet)
        unet.conv_norm_out.register_forward_hook(lambda *args: seen.append(args[2]) or 2 * args[2])
    if when == "before":
        fuse_(case.module)
    outputs = result(case), result(expected)
    assert (seen[0] - seen[1]).norm() <= 1e-5 * seen[1].norm()
    assert (outputs[0] - outputs[1]).norm() <= 1e-5 * outputs[1].norm()


@pytest.mark.usefixtures("on_reference")
def test_hooks_at_the_output_activation() -> None:
    """A module with a hook is not replaced: the hook stays where it is."""
    unet = class_unet().module
    unet.conv_act.register_forward_hook(lambda *args: None)
    before = unet.conv_act
    assert fuse_(unet).switched["GroupNorm"] == 1
    assert unet.conv_act is before


@pytest.mark.usefixtures("on_reference")
def test_the_output_activation_may_be_shared() -> None:
    """Old diffusers shares one SiLU between all modules: another network must not notice."""
    first, second = class_unet().module, class_unet().module
    second.conv_act = first.conv_act
    before = type(first.conv_act)
    fuse_(first)
    assert type(second.conv_act) is before
    x = torch.randn(2, 3, device=DEVICE)
    assert torch.equal(first.conv_act(x), nn.functional.silu(x))  # not behind the norm: as ever
