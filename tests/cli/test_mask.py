"""What `pecker-fast mask` says about the arithmetic that a mask saves."""

import re

import pytest
import torch

from pecker_fast.distill.config import load_config
from pecker_fast.erasure.masks import describe_backward
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.nn.flops import BackwardFlops, NetworkFlops

FULL = BackwardFlops(12_700_000_000, 12_200_000_000)


@pytest.mark.parametrize(("apply", "share"), [("generator", 2.9), ("both", 5.8)])
def test_the_figures_of_a_mask_that_saves(apply, share):
    mask = SaliencyMask.random({"weight": torch.zeros(4, 4)}, 0.5, 0, granularity="out_channel")
    masked = BackwardFlops(12_202_000_000, 9_212_000_000)
    # Of 24.9: 2.988 are weight gradients and 0.498 input gradients. An iteration is 5 x 10 + 2 x 10
    # + 2 x 24.9 = 119.8.
    flops = NetworkFlops(10**10, 10**10, FULL, masked)
    line = describe_backward(flops, mask, load_config(None, {"mask.apply": apply}))
    found = [float(number) for number in re.findall(r"\d+\.\d+", line)]
    assert found == [21.4, 24.9, 14.0, share]


@pytest.fixture
def find(run, files, tmp_path):
    """Run the command; the line about the backward pass."""

    def find(*options):
        done = run(
            "mask", files.model, "--forget", 0, "--override", 1, "--density", 0.5,
            "--mask", "random", "--out", tmp_path / "mask.safetensors", "--force", *options,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert done.out.endswith(f"{tmp_path / 'mask.png'}\n")
        (line,) = (text for text in done.out.splitlines() if text.startswith("backward"))
        return line

    return find


@pytest.mark.slow
def test_the_command_counts(find):
    assert "(0.0% skipped)" in find()
    rows = find("--set", "mask.granularity=out_channel", "--set", "mask.apply=both")
    found = re.search(r"([\d.]+) of ([\d.]+) MFLOP .* iteration: ([\d.]+)%", rows)
    masked, full, share = (float(number) for number in found.groups())
    assert 0 < masked < full and share > 0


def test_a_network_that_cannot_be_counted_is_no_error(find, monkeypatch):
    load = ModelFolder.load

    def deciding(path):
        folder = load(path)
        # A tensor's value decides: possible everywhere but on the meta device.
        folder.network.register_forward_pre_hook(
            lambda module, args: bool(args[0].sum() > 0) and None
        )
        return folder

    monkeypatch.setattr(ModelFolder, "load", deciding)
    assert "UNet2DModel cannot be counted" in find()
