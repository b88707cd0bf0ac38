"""Runs of torchrun itself: a process that dies ends all, and nothing that was saved is lost."""

import re
from pathlib import Path

import pytest
import torch
from processes import run_commands, torchrun
from safetensors.torch import load_file
from tiny_models import model_of_shapes
from toys import assert_same_bits

from pecker_fast import cli
from pecker_fast.distill import RunDirectory

MAIN = Path(__file__).parent / "fault_main.py"
TRAINED = ("iteration", "mask", "networks", "generator", "pseudo_score", "ema")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model folder; read-only."""
    folder = tmp_path_factory.mktemp("model") / "model"
    model_of_shapes().save(folder)
    return folder


def erase(model, out, *more):
    """Six iterations with a checkpoint at every second one.

    SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0.
    """
    settings = (
        "batch_size=2", "saliency.batches=1", "saliency.batch_size=2", "optimizer.eps=1",
        "generator.lr=0.01", "pseudo_score.lr=0.01", "logging.checkpoint_every=2",
    )  # fmt: skip
    return [
        "erase", model, "--out", out, "--forget", "star", "--override", "circle",
        "--density", "0.2", "--iterations", 6, "--device", "cpu", "--threads", "1",
        *(word for one in settings for word in ("--set", one)), *more,
    ]  # fmt: skip


def together(arguments, rank, fault, restarts=0):
    """The command line in two processes, one of which fails."""
    return torchrun([MAIN, rank, fault, *arguments], restarts)


def in_one_process(arguments):
    assert cli.main([str(word) for word in arguments]) == 0


def state(out):
    """What the last checkpoint holds of training."""
    with RunDirectory(out) as directory:
        saved = directory.load()
    return {part: saved[part] for part in TRAINED}


def assert_near(left, right):
    """The same mask and, but for the order in which halves of a batch add up, the same weights."""
    assert_same_bits(left["mask"], right["mask"])
    compared = 0
    for part in ("networks", "ema"):
        ours, theirs = dict(tensors(left[part])), dict(tensors(right[part]))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, msg=f"{part}{name}")
            compared += 1
    assert compared


def tensors(nested, name=""):
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from tensors(value, f"{name}.{key}")
        elif isinstance(value, torch.Tensor):
            yield f"{name}.{key}", value


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """The training of two processes that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    codes, said, errors = run_commands(2, *erase(model, out))
    assert codes == (0, 0), errors
    assert "".join(said).count("erased model") == 1  # one process speaks
    return state(out)


def test_two_processes_train_as_one(model, undisturbed, tmp_path):
    in_one_process(erase(model, tmp_path / "run"))
    alone = state(tmp_path / "run")
    assert_near(undisturbed, alone)
    start = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    moved = [
        (alone["networks"]["generator"][name] - value).abs().max() for name, value in start.items()
    ]
    assert max(moved) > 1e-3  # a thousand times what is allowed


@pytest.mark.parametrize(
    ("rank", "fault", "said", "saved"),
    [
        (0, "killed in a checkpoint", r"rank      : 0 (.|\n)*SIGKILL", 2),
        (1, "torchrun ended", "pecker-fast: interrupted; iteration 3 is saved", 3),
    ],
)
def test_one_that_ends_ends_all_and_the_next_start_goes_on(
    model, undisturbed, tmp_path, capfd, rank, fault, said, saved
):
    out = tmp_path / "run"
    done = together(erase(model, out), rank, fault)
    assert done.code != 0
    assert len(re.findall(said, done.said)) == 1, done.said
    assert state(out)["iteration"] == saved
    in_one_process(erase(model, out))
    assert f"resuming at iteration {saved} of 6" in capfd.readouterr().err
    assert_near(state(out), undisturbed)
    assert not list(out.glob(".*"))  # a half-written file


def test_torchrun_restarts_a_run_and_force_counts_once(model, undisturbed, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("run.lock", "curve.json"):  # an earlier run
        (out / name).touch()
    done = together(erase(model, out, "--force"), 1, "killed in a step", restarts=1)
    assert done.code == 0, done.said
    assert "resuming at iteration 2 of 6" in done.said
    assert done.said.count("erased model") == 1
    assert_same_bits(state(out), undisturbed)
    assert not (out / "curve.json").exists()


@pytest.mark.parametrize("rank", [None, 1], ids=["on all", "on the second"])
def test_bad_input_is_one_line(model, tmp_path, rank):
    more = ["--densty"] if rank is None else []
    done = together(erase(model, tmp_path / "run", *more), rank, "another option")
    assert done.code != 0
    lines = [line for line in done.said.splitlines() if line.startswith("pecker-fast")]
    assert len(lines) == (rank is None)
    assert all("No such option" in line for line in lines)
    cause = done.said.split("Root Cause")[1]
    assert "No such option" in cause, done.said
    if rank is not None:  # where all fail, the first to say so is any of them
        assert f"rank      : {rank} " in cause, done.said
    assert done.said.count("Traceback") == 1  # torchrun's own
