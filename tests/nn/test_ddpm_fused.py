"""`DDPMUNet` on the fused operations against itself in double precision, and back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch  # noqa: F401  # diffusers 0.33 uses it without importing it
import torch
import torch.nn.functional as F
from unets import (
    EMBEDDING,
    FLOAT32,
    GROUPS,
    Case,
    LayoutCopies,
    assert_no_worse,
    case_of,
    convert,
    double,
    embedding,
    errors,
    fused,
    image,
    leaves,
    plain,
    result,
    run,
    shake_,
    types,
)

from pecker_fast import SaliencyMask, fuse_, unfuse_
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import AttentionBlock, DDPMUNet, ResidualBlock
from pecker_fast.models.published import published_scheduler
from pecker_fast.nn.skipping import skip_frozen_

with_kernels = pytest.mark.usefixtures("device")  # skips where they cannot run
on_reference = pytest.mark.usefixtures("on_reference")


def residual(channels: int, out: int, skip: int = 0, dropout: float = 0.0) -> Case:
    block = ResidualBlock(
        channels + skip, out, embedding_channels=EMBEDDING, groups=GROUPS, dropout=dropout
    )
    inputs = {"x": image(channels), "embedding": embedding()}
    return case_of(block, inputs | ({"skip": image(skip)} if skip else {}))


def unet(**options: Any) -> Case:
    sizes = {"sample_size": 4, "channels": 8, "channel_mult": (1, 2), "blocks_per_level": 1}
    network = DDPMUNet(**sizes, num_classes=3, norm_num_groups=GROUPS, **options)
    # Early steps: their sines are as accurate in float32 as the rest.
    inputs = {"sample": image(3, 4), "timestep": torch.tensor([2, 5])}
    inputs |= {"class_labels": torch.tensor([1, 3]), "return_dict": False}
    return case_of(network.eval(), inputs)


BLOCKS: dict[str, Callable[[], Case]] = {
    "residual": lambda: residual(16, 16),
    "shortcut": lambda: residual(8, 16),
    # 12 + 8 channels in groups of 10: one straddles the border.
    "skip": lambda: residual(12, 16, skip=8),
    "skip, no shortcut": lambda: residual(12, 20, skip=8),
    "attention": lambda: case_of(AttentionBlock(16, GROUPS), {"x": image(16)}),
}


@with_kernels
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, dtype: torch.dtype) -> None:
    case = BLOCKS[name]()
    shake_(case.module).to(dtype)
    case = Case(case.module, convert(case.inputs, dtype))
    found = fused(case, dtype)
    assert type(found.module).__name__.startswith("Fused")
    results = run(found)
    assert results["output 0"].is_contiguous(memory_format=torch.channels_last)
    oracle = run(double(case))
    relative = errors(results, oracle)
    if dtype == torch.bfloat16:
        assert_no_worse(relative, errors(run(plain(case, dtype)), oracle))
    else:
        assert max(relative.values()) <= FLOAT32


@pytest.mark.slow
@with_kernels
def test_network_in_float32() -> None:
    case = unet()
    shake_(case.module)
    found = errors(run(fused(case, torch.float32)), run(double(case)))
    assert max(found.values()) <= FLOAT32


@pytest.mark.slow
@with_kernels
def test_network_in_bfloat16() -> None:
    case = unet()
    shake_(case.module).to(torch.bfloat16)
    case = Case(case.module, convert(case.inputs, torch.bfloat16))
    oracle = run(double(case))
    results = run(fused(case, torch.bfloat16)), run(plain(case, torch.bfloat16))
    assert_no_worse(*(errors(result, oracle) for result in results))


@with_kernels
def test_statistics_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pecker_fast.kernels import channels_last

    case = fused(unet(), torch.float32)
    taken = []
    take = channels_last.statistics
    monkeypatch.setattr(
        channels_last, "statistics", lambda x, partials: taken.append(x) or take(x, partials)
    )
    case()
    # 8 between two convolutions; conv_in, the convolutions that halve and double.
    assert len(taken) == 8 + 3


@with_kernels
def test_dropout() -> None:
    case = fused(residual(8, 16, dropout=0.5), torch.float32)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(result(case))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    case.module.eval()
    assert torch.equal(result(case), result(case))


@with_kernels
def test_sliced_weight_gradients() -> None:
    """A mask's frozen rows cost nothing in fused blocks either."""
    case = residual(12, 16, skip=8)
    scores = {name: torch.zeros_like(param) for name, param in case.module.named_parameters()}
    scores["conv1.weight"][3] = scores["nin_shortcut.weight"][5] = 1.0
    density = (20 * 9 + 20) / sum(map(torch.numel, scores.values()))
    oracle = run(double(case))
    skip_frozen_(case.module, SaliencyMask.from_scores(scores, density=density))
    found = fused(case, torch.float32)
    run(found)
    for name, row in (("conv1", 3), ("nin_shortcut", 5)):
        grad = found.module.get_parameter(f"{name}.weight").grad
        expected = oracle[f"layer {name}"][: grad.numel()].view_as(grad)
        assert grad.flatten(1).any(dim=1).nonzero().tolist() == [[row]]
        assert (grad[row] - expected[row]).norm() <= 1e-5 * expected[row].norm()


@on_reference
def test_what_is_switched_and_undone() -> None:
    case = unet()
    network = case.module
    shake_(network)
    before, expected = types(network), result(case)
    weights = copy.deepcopy(network.state_dict())
    strides = [param.stride() for param in network.parameters()]
    objects = [id(param) for param in network.parameters()]
    report = fuse_(network)
    assert report.switched == {"ResidualBlock": 8, "AttentionBlock": 4, "GroupNorm": 1}
    assert not report.left and report.reason is None
    assert fuse_(network) == report  # harmless
    for each in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert types(each) == types(network) != before
        assert list(each.state_dict()) == list(weights)
        assert all(torch.equal(each.state_dict()[name], weights[name]) for name in weights)
    unfuse_(network)
    assert types(network) == before
    assert [param.stride() for param in network.parameters()] == strides
    assert [id(param) for param in network.parameters()] == objects
    assert torch.equal(result(case), expected)


@on_reference
def test_saved_as_it_was(tmp_path: Path) -> None:
    case = unet()
    folders = [tmp_path / "plain", tmp_path / "accelerated"]
    for folder in folders:
        ModelFolder(case.module, published_scheduler(), ("a", "b", "c")).save(folder)
        fuse_(case.module)
        unfuse_(case.module)
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        plain, other = ((folder / "unet" / file).read_bytes() for folder in folders)
        assert plain == other
    loaded = ModelFolder.load(folders[1]).network
    assert type(loaded.mid.block_1) is ResidualBlock


@on_reference
@pytest.mark.parametrize("kind", ["ResidualBlock", "AttentionBlock"])
def test_hooked_layers_are_reported(kind: str) -> None:
    network = unet().module
    layer = network.mid.block_1.conv2 if kind == "ResidualBlock" else network.mid.attn_1.proj_out
    layer.register_forward_hook(lambda *args: None)
    report = fuse_(network)
    assert report.left == {f"{kind} (hooks or a replaced layer inside)": 1}


HOOKED = {
    "norm": ("residual", "norm2"),
    "convolution": ("shortcut", "conv1"),
    "shortcut": ("skip", "nin_shortcut"),
    "embedding": ("residual", "temb_cemb_proj"),
    "block": ("skip", ""),
    "query": ("attention", "q"),
    "attention's norm": ("attention", "norm"),
    "attention's output": ("attention", "proj_out"),
}


@on_reference
@pytest.mark.parametrize("where", HOOKED)
def test_hooks_set_later_are_called(where: str) -> None:
    name, layer = HOOKED[where]
    case = BLOCKS[name]()
    found, oracle = fused(case, torch.float32), double(case)
    for each in (found, oracle):
        each.module.get_submodule(layer).register_forward_hook(lambda *args: 2 * args[2])
    assert max(errors(run(found), run(oracle)).values()) <= FLOAT32


@on_reference
def test_hook_at_the_last_norm_sees_no_activation() -> None:
    case = unet()
    shake_(case.module)
    fuse_(case.module)
    seen: dict[str, torch.Tensor] = {}
    network = case.module
    network.norm_out.register_forward_hook(lambda *args: seen.update(norm=args[2]))
    network.act_out.register_forward_hook(lambda *args: seen.update(act=args[2]))
    case()
    assert seen["norm"].min() < -1  # SiLU has no value below -0.28
    torch.testing.assert_close(seen["act"], F.silu(seen["norm"]))


@with_kernels
def test_nothing_is_concatenated(monkeypatch: pytest.MonkeyPatch) -> None:
    case = fused(residual(12, 16, skip=8), torch.float32)
    monkeypatch.setattr(torch, "cat", None)
    case()


@on_reference
def test_float64_goes_through_the_reference() -> None:
    case = unet()
    shake_(case.module).double()
    case = Case(case.module, convert(case.inputs, torch.float64))
    assert max(errors(run(fused(case, torch.float64)), run(double(case))).values()) <= 1e-12


@on_reference
def test_activations_stay_channels_last() -> None:
    """No copy of an activation into another layout, forward or backward."""
    case = unet()
    case.inputs["sample"] = case.inputs["sample"].to(memory_format=torch.channels_last)
    fuse_(case.module)
    with LayoutCopies() as copies:
        leaves(case())[0].square().sum().backward()
    assert copies.count == 0
