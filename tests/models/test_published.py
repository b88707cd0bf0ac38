"""Files as SA, SalUn, SFD and EraseDiff write them, and files that are something else."""

import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_layouts import (
    LAYOUTS,
    MODEL,
    SIZES,
    Weights,
    assert_same,
    weights,
)
from safetensors.torch import save_file

from pecker_fast.errors import PeckerError
from pecker_fast.models import published
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.published import network_from, read_checkpoint


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_layouts(layout: str, zipped: bool, tmp_path: Path) -> None:
    content, slots, step = LAYOUTS[layout]
    torch.save(content, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "ckpt.pth")
    assert (list(read.slots), read.step) == (list(slots), step)
    assert read.is_distilled == ("generator" in slots)
    for slot, expected in slots.items():
        assert_same(read.slots[slot], expected)
        network = read.network(slot)
        assert_same(network.state_dict(), expected)
        assert not network.training
    assert read.choose() == next(iter(slots))
    with pytest.raises(PeckerError, match=r"has no slot 'other'; it has "):
        read.choose("other")


def test_only_generators_take_one_step(tmp_path: Path) -> None:
    torch.save(LAYOUTS["distilled"][0], tmp_path / "ckpt.pth")
    read = read_checkpoint(tmp_path / "ckpt.pth")
    one_step = {slot: read.is_generator(slot) for slot in read.slots}
    assert one_step == {"ema": True, "generator": True, "pseudo-score": False}
    torch.save(LAYOUTS["trained"][0], tmp_path / "ckpt.pth")
    read = read_checkpoint(tmp_path / "ckpt.pth")
    assert not any(read.is_generator(slot) for slot in read.slots)


@pytest.mark.parametrize("preset", ["cifar10", "stl10"])
def test_presets_are_read_off_the_shapes(preset: str) -> None:
    with torch.device("meta"):
        expected = getattr(DDPMUNet, preset)()
    sizes = published._sizes(expected.state_dict())
    assert sizes == {name: expected.config[name] for name in sizes}
    assert set(expected.config) - set(sizes) == {
        "sample_size", "norm_num_groups", "dropout", "_use_default_values",
    }  # fmt: skip


@pytest.mark.parametrize(
    "sizes",
    [
        {"sample_size": 64, "channel_mult": (1, 1, 2), "attention_levels": (2,)},
        {"sample_size": 16, "channel_mult": (1, 3), "attention_levels": (0,), "in_channels": 1},
        {"blocks_per_level": 3, "num_classes": 7},
        {"null_class": False},
    ],
)
def test_sizes_are_read_off_the_shapes(sizes: dict[str, Any]) -> None:
    network = network_from(weights(0, **sizes), "here")
    torch.manual_seed(0)
    expected = DDPMUNet(**(SIZES | {"sample_size": 32} | sizes))
    ignored = {"_use_default_values": []}
    assert network.config | ignored == expected.config | ignored
    assert network_from(weights(0), "here", sample_size=8).config.sample_size == 8


def _without(network: Weights, *names: str) -> Weights:
    return {name: value for name, value in network.items() if name not in names}


OTHERS: dict[str, tuple[Callable[[], Weights], str]] = {
    "missing": (
        lambda: _without(MODEL, "norm_out.bias", "mid.attn_1.q.weight"),
        "2 missing: 'mid.attn_1.q.weight', 'norm_out.bias'",
    ),
    "unexpected": (
        lambda: MODEL | {"logvar": torch.zeros(1000)},
        r"another architecture, does not fit: 1 unexpected: 'logvar'",
    ),
    "shape": (
        lambda: MODEL | {"conv_out.weight": torch.zeros(6, 32, 3, 3)},
        r"1 shaped otherwise: 'conv_out.weight', the first \(6, 32, 3, 3\) instead of \(3,",
    ),
    "hard-coded class width": (
        lambda: MODEL | {"mid.block_1.temb_cemb_proj.weight": torch.zeros(64, 640)},
        r"'mid.block_1.temb_cemb_proj.weight', the first \(64, 640\) instead of \(64, 256\)",
    ),
    "unconditional": (
        lambda: _without(MODEL, "classes_emb.weight"),
        "classes_emb.weight.*an unconditional DDPM knows no classes",
    ),
    "diffusers": (
        lambda: {"conv_in.weight": MODEL["conv_in.weight"], "down_blocks.0.x": torch.zeros(1)},
        "looks like a diffusers or Stable Diffusion network",
    ),
    "a classifier": (
        lambda: {"fc.weight": torch.zeros(10, 4)},
        "conv_in.weight.*it has 1 tensors, 'fc.weight'",
    ),
    "narrow": (
        lambda: weights(0, channels=8, norm_num_groups=8),
        "another architecture or image size.*8 channels does not divide into 32 groups",
    ),
    "uneven": (
        lambda: MODEL | {"down.1.block.0.conv1.weight": torch.zeros(40, 32, 3, 3)},
        "a level of 40 channels is no multiple of the base width 32",
    ),
    "a level left out": (
        lambda: {name.replace("down.1.", "down.2."): value for name, value in MODEL.items()},
        "down.1.block.0.conv1.weight",
    ),
    "diverged": (
        lambda: MODEL | {"norm_out.bias": torch.full((32,), torch.nan)},
        "norm_out.bias.*holds NaN or infinity",
    ),
    "1000 levels": (
        lambda: MODEL | {f"down.{n}.x": torch.zeros(1) for n in range(1000)},
        "another architecture.*1000 levels",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name: str) -> None:
    make, message = OTHERS[name]
    with pytest.raises(PeckerError, match=message) as error:
        network_from(make(), "file.pth, slot ema")
    assert str(error.value).startswith("file.pth, slot ema: ")


class Touches:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return subprocess.check_call, (["touch", str(self.path)],)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_no_code_is_run(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    write([MODEL, Touches(tmp_path / "harm")], tmp_path / "ckpt.pth")
    with pytest.raises(PeckerError, match="without running code"):
        read_checkpoint(tmp_path / "ckpt.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("layout", ["trained", "distilled", "distilled, early"])
def test_the_remedy_for_a_refused_list_keeps_every_network(layout: str, tmp_path: Path) -> None:
    path, again = tmp_path / "ckpt.pth", tmp_path / "weights.pth"
    content, slots, _ = LAYOUTS[layout]
    torch.save([np.int64(x) if isinstance(x, int) else x for x in content], path)
    with pytest.raises(PeckerError) as error:
        read_checkpoint(path)
    remedy = str(error.value).split("`")[3].replace("'weights.pth'", "again")
    loaded = torch.load(path, weights_only=False)
    eval(remedy, {"torch": torch, "x": loaded, "again": again})
    read = read_checkpoint(again)
    assert list(read.slots) == list(slots)
    for slot, expected in slots.items():
        assert_same(read.slots[slot], expected)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_safetensors_file_is_a_state_dict_alone(prefix: str, tmp_path: Path) -> None:
    save_file(weights(2, prefix), tmp_path / "weights.bin")  # the name does not matter
    read = read_checkpoint(tmp_path / "weights.bin")
    assert (list(read.slots), read.step) == (["model"], None)
    found = read.network().state_dict()
    assert_same({name: found[name] for name in MODEL}, MODEL)
