"""accelerate_ and decelerate_: whole U-Nets, and all about a network that must not change."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch  # noqa: F401  # diffusers 0.31 uses it without importing it
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))  # for unets.py

from unets import (
    DEVICE,
    UNETS,
    Case,
    class_unet,
    convert,
    double,
    errors,
    leaves,
    mid,
    on_device,
    resnet,
    run,
    shake_,
    text_unet,
)

from pecker_fast import MaskedAdamW, PeckerError, SaliencyMask, accelerate_, decelerate_
from pecker_fast.nn import operations
from pecker_fast.nn.blocks import FusedResnetBlock2D
from pecker_fast.nn.skipping import skip_frozen_

with_kernels = pytest.mark.usefixtures("device")  # skips where they cannot run


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, torch's convolutions otherwise round float32 to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def on_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused modules on plain torch operations: what is tested does not depend on the kernels."""
    monkeypatch.setattr(operations, "unavailable", lambda device: None)
    monkeypatch.setattr(operations, "runs_triton", lambda x: False)


def types(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def result(case: Case) -> torch.Tensor:
    with torch.no_grad():
        return leaves(case())[0]


@with_kernels
@pytest.mark.parametrize("name", UNETS)
def test_unet_in_float32(name: str) -> None:
    case = UNETS[name]()
    shake_(case.module)
    oracle = run(double(case))
    accelerate_(case.module)
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
    accelerate_(case.module)
    found = errors(run(Case(case.module, convert(case.inputs, torch.bfloat16))), oracle)
    assert found["output 0"] <= 2e-2
    # 2^-9 at every tensor stored on the way to the first layer and back: as much as diffusers' own
    # path has. 2: another draw of the same rounding errors.
    assert not {key: error for key, error in found.items() if error > max(2e-2, 2 * plain[key])}


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
        "Upsample2D": 1,
        "GroupNorm": 1,
    },
}


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("name", EXPECTED)
def test_report_counts_everything_switched(name: str) -> None:
    unet = UNETS[name]().module
    first = accelerate_(unet)
    assert first.switched == EXPECTED[name] and not first.left and first.reason is None
    switched = types(unet)
    assert accelerate_(unet) == first  # harmless
    assert types(unet) == switched
    counts = ", ".join(f"{count} {kind}" for kind, count in EXPECTED[name].items())
    assert str(first) == f"accelerated: {counts}"


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

    accelerate_(unet)
    assert types(unet) != before[0]
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for each in (unet, copy.deepcopy(unet)):
        state = each.state_dict()
        assert list(state) == list(before[1])
        assert all(torch.equal(state[key], before[1][key]) for key in state)

    decelerate_(unet)
    decelerate_(unet)  # harmless
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
    accelerate_(unet)
    decelerate_(unet)
    assert [parameter.stride() for parameter in unet.parameters()] == strides


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
@pytest.mark.parametrize("name", ["class", "text"])
def test_copies_are_accelerated_and_can_be_undone(name: str, copied) -> None:
    case = UNETS[name]()
    shake_(case.module)
    plain = types(case.module)
    accelerate_(case.module)
    twin = copied(case.module)
    assert types(twin) == types(case.module)
    assert torch.equal(result(Case(twin, case.inputs)), result(case))
    decelerate_(twin)
    assert types(twin) == plain
    assert types(case.module) != plain  # the original is not touched


@pytest.mark.usefixtures("on_reference")
def test_saved_as_the_class_it_is(tmp_path: Path) -> None:
    case = class_unet()
    accelerate_(case.module)
    case.module.save_config(tmp_path / "accelerated")
    plain = copy.deepcopy(case.module)
    decelerate_(plain)
    # Not accelerated: older versions of diffusers refuse to save channels_last weights.
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
    accelerate_(unet)
    block = unet.mid_block.resnets[0]
    assert isinstance(block, ResnetBlock2D) and isinstance(block, FusedResnetBlock2D)
    unet.eval()
    assert not any(module.training for module in unet.modules())
    decelerate_(unet)
    assert not any(module.training for module in unet.modules() if module is not unet.conv_act)


def test_where_kernels_cannot_run_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "unavailable", lambda device: f"none on {device}")
    unet = class_unet().module
    before = types(unet)
    strides = [parameter.stride() for parameter in unet.parameters()]
    report = accelerate_(unet)
    assert types(unet) == before
    assert [parameter.stride() for parameter in unet.parameters()] == strides
    assert str(report).startswith(f"not accelerated: none on {DEVICE}")
    assert not report.switched


def test_other_devices_are_refused() -> None:
    report = accelerate_(class_unet().module.to("meta"))
    assert report.reason is not None and "meta" in report.reason


@pytest.mark.parametrize("function", [accelerate_, decelerate_])
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
    expected = result(case)  # in float32: diffusers 0.31 cannot filter in float64
    report = accelerate_(case.module)
    assert report.left["AttnSkipUpBlock2D (no fused form)"] == 1
    assert report.left["SkipUpBlock2D (no fused form)"] == 1
    assert report.left["ResnetBlock2D (resampling inside)"] == 2
    assert "on the torch path: " in str(report).splitlines()[1]
    # float32 on both sides, so 2^-24 twice through some forty layers.
    assert (result(case) - expected).norm() <= 2e-5 * expected.norm()


@pytest.mark.usefixtures("on_reference")
def test_scale_shift_keeps_the_residual_blocks() -> None:
    report = accelerate_(class_unet(resnet_time_scale_shift="scale_shift").module)
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
    assert accelerate_(mine).left == {"Mine (a class of its own)": 1}
    report = accelerate_(nn.Sequential(nn.Linear(2, 2)))
    assert str(report) == "accelerated: nothing, no block of diffusers in it"
    norm = nn.GroupNorm(2, 4, affine=False)
    assert accelerate_(norm).left == {"GroupNorm (no scale and shift)": 1}


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
            accelerate_(unet)
        unet.conv_norm_out.register_forward_hook(lambda *args: seen.append(args[2]) or 2 * args[2])
    if when == "before":
        accelerate_(case.module)
    outputs = result(case), result(expected)
    assert (seen[0] - seen[1]).norm() <= 1e-5 * seen[1].norm()
    assert (outputs[0] - outputs[1]).norm() <= 1e-5 * outputs[1].norm()


@pytest.mark.usefixtures("on_reference")
def test_hooks_at_the_output_activation() -> None:
    """A module with a hook is not replaced: the hook stays where it is."""
    unet = class_unet().module
    unet.conv_act.register_forward_hook(lambda *args: None)
    before = unet.conv_act
    assert accelerate_(unet).switched["GroupNorm"] == 1
    assert unet.conv_act is before


@pytest.mark.usefixtures("on_reference")
def test_the_output_activation_may_be_shared() -> None:
    """Old diffusers shares one SiLU between all modules: another network must not notice."""
    first, second = class_unet().module, class_unet().module
    second.conv_act = first.conv_act
    before = type(first.conv_act)
    accelerate_(first)
    assert type(second.conv_act) is before
    x = torch.randn(2, 3, device=DEVICE)
    assert torch.equal(first.conv_act(x), nn.functional.silu(x))  # not behind the norm: as ever


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
            accelerate_(unet)
        optimizer = MaskedAdamW(
            unet.named_parameters(), lr=1e-3, eps=1e-3, mask=mask, release_grads=True
        )
        if fused and order == "optimizer first":
            accelerate_(unet)
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
    report = accelerate_(case.module)
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
    accelerate_(case.module)
    for each in (case.module, oracle.module):
        each.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    found, expected = result(case), result(oracle)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("on_reference")
def test_gradient_checkpointing() -> None:
    case = text_unet()
    oracle = run(double(case))
    accelerate_(case.module)
    case.module.enable_gradient_checkpointing()
    found = run(Case(case.module, convert(case.inputs, torch.float32)))
    assert max(errors(found, oracle).values()) <= 1e-5


class LayoutCopies(TorchDispatchMode):
    """Counts copies of activations into another order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.clone.default and args[0].dim() >= 3:
            self.count += args[0].stride() != out.stride()
        return out


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
        accelerate_(case.module)
    assert counts[0] >= 4 and counts[1] == 0


@with_kernels
@pytest.mark.parametrize("gradients", [True, False])
def test_statistics_are_taken_once(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes of their own only behind convolutions that no residual sum ends."""
    from pecker_fast.kernels import channels_last

    case = class_unet()
    accelerate_(case.module)
    taken = []
    take = channels_last.statistics
    monkeypatch.setattr(
        channels_last, "statistics", lambda x, partials: taken.append(x) or take(x, partials)
    )
    with torch.set_grad_enabled(gradients):
        case()
    # Of 25 inputs of norms: 8 between two convolutions; conv_in, the downsampler, the upsampler.
    assert len(taken) == 8 + 3
