"""`pecker-fast train-teacher` on two processes: the weights of one, and resumed by one."""

import pytest
import torch
from fault_processes import run_commands
from image_data import random_images, write_images
from safetensors.torch import load_file

from pecker_fast import cli

SETTINGS = (
    "batch_size=6", "network.channels=4", "network.channel_mult=[1,2]", "network.norm_num_groups=2",
    "network.attention_levels=[1]", "lr=0.01", "lr_schedule=constant", "warmup=0",
    "optimizer.eps=1", "ema.decay=0.5", "logging.every=2", "logging.checkpoint_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = random_images(30, 3)
    write_images(root, images, images, ("circle", "square", "star"))
    return root


def command(data, out, iterations):
    words = [
        "train-teacher", "--config", "small_teacher", "--dataset", "images",
        "--data-root", data, "--out", out, "--iterations", iterations,
        "--device", "cpu", "--threads", 1, *(w for s in SETTINGS for w in ("--set", s)),
    ]  # fmt: skip
    return [str(word) for word in words]


def weights(out):
    return load_file(out / "model/unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The weights of a run on one process; read-only."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(command(data, out, 6)) == 0
    return weights(out)


def assert_near(out, alone):
    for name, value in weights(out).items():
        # Two halves of a batch add up in another order.
        torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-6, msg=name)


def test_two_processes_train_as_one_and_one_goes_on(data, alone, tmp_path):
    out = tmp_path / "run"
    first, second = run_commands(tmp_path, command(data, out, 4), [None, None])
    assert (first.code, second.code) == (0, 0), (first.lines, second.lines)
    assert "iterations    4" in first.lines
    assert second.lines == []
    assert cli.main(command(data, out, 6)) == 0
    assert_near(out, alone)


def test_files_that_one_process_does_not_have(data, tmp_path):
    """Both say so, and neither waits for the other."""
    missing = command(tmp_path / "nothing", tmp_path / "run", 4)
    ended = run_commands(tmp_path, [command(data, tmp_path / "run", 4), missing], [None, None])
    assert [one.code for one in ended] == [2, 2], ended
    assert any("nothing: no such folder" in line for line in ended[1].errors)
    assert not list((tmp_path / "run").glob("*.pt"))
