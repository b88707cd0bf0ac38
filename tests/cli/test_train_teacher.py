"""`pecker-fast train-teacher --config`: from image files to a folder that the others take."""

import multiprocessing
import os
import signal

import pytest
import torch
import yaml
from cifar_files import random_images, write_cifar
from methods import training_jobs as jobs
from methods.training_jobs import command_line_killed_at_the_second_checkpoint
from safetensors.torch import load_file

from pecker_fast.methods.training_config import load_teacher_config
from pecker_fast.models import ModelFolder
from pecker_fast.runs.checkpoint import RunDirectory

NAMES = ("circle", "square", "star")
TINY = {
    **jobs.TINY,
    "dataset": "cifar10-format",
    "iterations": 4,
    "network": {**jobs.TINY["network"], "dropout": 0.2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images in CIFAR-10's files, and a recipe for them; read-only."""
    root = tmp_path_factory.mktemp("data")
    write_cifar(root, random_images(30, 3), random_images(12, 3, seed=1), NAMES)
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return root


@pytest.fixture
def train(run, data, tmp_path):
    """Run the command with the tiny recipe; later arguments win over earlier ones."""

    def train(*arguments, out=tmp_path / "run"):
        return run(
            "train-teacher", "--config", data / "tiny.yaml", "--data-root", data, "--out", out,
            "--threads", 1, *arguments,
        )  # fmt: skip

    return train


def refused(done, *words):
    assert done.code == 2, (done.code, done.err)
    assert done.out == ""
    messages = [line for line in done.err.splitlines() if line.startswith("pecker-fast: ")]
    assert len(messages) == 1 and done.err.endswith(messages[0] + "\n"), done.err
    for word in words:
        assert str(word) in messages[0], (word, messages[0])


def weights(out):
    return load_file(out / "model/unet/diffusion_pytorch_model.safetensors")


def test_the_folder_is_what_the_other_commands_take(train, run, data, tmp_path):
    done = train()
    assert done.code == 0, done.err
    out = tmp_path / "run"
    assert f"teacher       {out / 'model'}" in done.out
    model = ModelFolder.load(out / "model")
    assert (model.class_names, model.image_shape, model.kind) == (NAMES, (3, 8, 8), "teacher")
    assert model.figures["training"]["iterations"] == 4
    assert model.figures["training"]["images"].endswith("30 training images, 8x8")
    averages = torch.load(out / "checkpoint-00000004.pt", weights_only=True)["average"]
    for name, value in weights(out).items():
        assert torch.equal(value, averages[name])
    config = load_teacher_config(out / "config.yaml")
    assert (config.iterations, config.dataset) == (4, "cifar10-format")
    quick = [
        "--set",
        "batch_size=2",
        "--set",
        "saliency.batches=1",
        "--set",
        "saliency.batch_size=2",
    ]
    classes = ["--forget", "star", "--override", "circle", *quick]
    folder = out / "model"
    assert run("mask", folder, "--out", tmp_path / "m.safetensors", *classes).code == 0
    erased = run("erase", folder, "--out", tmp_path / "erased", "--iterations", 1, *classes)
    assert erased.code == 0, erased.err
    drawn = run("sample", folder, "--steps", 2, "--per-class", 1, "--png", tmp_path / "x.png")
    assert drawn.code == 0, drawn.err


def test_an_interrupted_run_goes_on_to_the_same_bits(train, monkeypatch, tmp_path):
    assert train(out=tmp_path / "whole").code == 0
    save = RunDirectory.save

    def save_and_stop(directory, iteration, state):
        save(directory, iteration, state)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "save", save_and_stop)
        done = train()
    assert done.code == 130
    assert "start the same command again" in done.err
    assert not (tmp_path / "run/model").exists()
    done = train()
    assert (done.code, "resuming at iteration 2 of 4" in done.err) == (0, True), done.err
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_can_be_made_longer_or_anew(train, tmp_path):
    assert train().code == 0
    before = weights(tmp_path / "run")
    longer = train("--iterations", 6)
    assert (longer.code, "resuming at iteration 4 of 6" in longer.err) == (0, True)
    assert sorted(file.name for file in (tmp_path / "run").glob("*.pt")) == [
        "checkpoint-00000004.pt",
        "checkpoint-00000006.pt",
    ]
    refused(train(), "a run of 6 iterations, more than the 4 asked for")
    anew = train("--force")
    assert (anew.code, "resuming" in anew.err) == (0, False)
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_a_class_by_name_then_by_number(train, tmp_path):
    assert train("--without", "Square").code == 0
    figures = ModelFolder.load(tmp_path / "run/model").figures["training"]
    assert "20 training images" not in figures["images"]  # what the files hold, then what is left
    assert figures["images"].endswith("without 'square'")
    assert figures["config"]["without"] == 1
    assert train("--without", "1", "--iterations", 5).code == 0
    refused(train("--without", "star"), "on other images")
    refused(train("--without", "hexagon"), "'hexagon'", "0 'circle', 1 'square', 2 'star'")


def test_progress_says_how_long_it_takes(train):
    assert "teacher: 100%" in train().err


# ---- bad input


def test_changed_settings_do_not_resume(train):
    assert train().code == 0
    refused(train("--set", "lr=1"), "a run with lr 0.001, this one has 1.0", "another directory")
    refused(train("--seed", 3), "a run with seed 0, this one has 3")
    refused(train("--set", "network.channels=8"), "network.channels")


def test_data_of_another_size_or_set(run, data, tmp_path):
    out = ["--out", tmp_path / "run", "--data-root", data]
    done = run("train-teacher", "--config", "cifar10_teacher", "--dataset", "cifar10-format", *out)
    refused(done, "8x8 pixels", "made for 32x32", "network.image_size=8")
    done = run("train-teacher", "--config", "cifar10_teacher", *out)
    refused(done, "not the published file", "--dataset cifar10-format")
    done = run("train-teacher", "--config", "stl10_teacher", *out)
    refused(done, "no stl10_binary in it; found cifar-10-batches-py", "--download fetches it")
    done = run("train-teacher", "--config", "small_teacher", *out)
    refused(done, "small_teacher leaves the images open; add --dataset")
    done = run("train-teacher", "--config", "cifar10_teacher", "--out", tmp_path / "run")
    refused(done, "--data-root is missing")
    done = run("train-teacher", "--config", "imagenet_teacher", *out)
    refused(done, "shipped recipes are cifar10_retrain, cifar10_teacher")
    assert not (tmp_path / "run").exists()


def test_truncated_file(run, data, tmp_path):
    pixels, labels = random_images(30, 3)
    folder = write_cifar(tmp_path, (pixels, labels), (pixels, labels), NAMES)
    batch = folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-100])
    done = run(
        "train-teacher", "--config", data / "tiny.yaml", "--data-root", tmp_path, "--out",
        tmp_path / "run",
    )  # fmt: skip
    refused(done, batch, "not a complete pickle file", "download it again")
    assert not (tmp_path / "run").exists()


def test_directories_of_other_runs_and_things(train, run, data, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    refused(train(out=tmp_path / "full"), "is not empty and holds no run")
    with RunDirectory(tmp_path / "erased") as directory:
        directory.save(1, {"networks": {}})
    refused(train(out=tmp_path / "erased"), "a run of another kind")
    with RunDirectory(tmp_path / "busy"):
        refused(train(out=tmp_path / "busy"), f"in use by process {os.getpid()}")


def test_diverging_run_stops_and_says_so(train, tmp_path):
    done = train("--set", "lr=1e30")
    refused(done, "stopped", "lower lr")
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--without", "star"], ["--without needs --config", "small_teacher"]),
        (["--dataset", "cifar10"], ["--dataset needs --config"]),
        (["--set", "lr=1"], ["--set needs --config"]),
        (["--config", "small_teacher", "--steps", "3"], ["--steps", "without --config"]),
        (["--config", "small_teacher", "--batch-size", "3"], ["--set batch_size=N"]),
        (["--config", "small_teacher", "--set", "lr"], ["KEY=VALUE"]),
    ],
)
def test_options_of_the_two_ways_do_not_mix(run, tmp_path, arguments, words):
    refused(run("train-teacher", "--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


# ---- a killed run


def command(data, out, *arguments):
    words = [
        "train-teacher", "--config", data / "tiny.yaml", "--data-root", data, "--out", out,
        "--threads", 1, *arguments,
    ]  # fmt: skip
    return [str(word) for word in words]


def test_killed_while_a_checkpoint_is_written(train, data, tmp_path):
    """The first checkpoint survives, the half-written second one is cleared away."""
    assert train(out=tmp_path / "whole").code == 0
    out = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    killed = context.Process(
        target=command_line_killed_at_the_second_checkpoint, args=(command(data, out),)
    )
    killed.start()
    killed.join(100)
    assert killed.exitcode == -signal.SIGKILL
    assert (out / "checkpoint-00000002.pt").exists()
    assert not (out / "checkpoint-00000004.pt").exists()
    assert len(list(out.glob(".*.tmp*"))) == 1
    done = train()
    assert (done.code, "resuming at iteration 2 of 4" in done.err) == (0, True), done.err
    assert not list(out.glob(".*.tmp*"))
    whole, resumed = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
