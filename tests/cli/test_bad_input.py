"""Bad input: exit code 2, one line that names the thing and the remedy, nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.runs.checkpoint import RunDirectory

QUICK = [
    "--iterations", "4", "--set", "batch_size=2", "--set", "saliency.batches=1",
    "--set", "saliency.batch_size=2", "--set", "generator.lambda_forget=1",
]  # fmt: skip
CLASSES = ["--forget", "star", "--override", "circle"]


def refused(done, *words):
    """The message of a refusal, after checking its form."""
    assert done.code == 2, (done.code, done.err)
    assert "Traceback" not in done.err and done.out == ""
    messages = [line for line in done.err.splitlines() if line.startswith("pecker-fast: ")]
    assert len(messages) == 1 and done.err.endswith(messages[0] + "\n"), done.err
    for word in words:
        assert str(word) in messages[0], (word, messages[0])
    return messages[0]


@pytest.fixture
def erase(run, files, tmp_path):
    """Run `erase` with extra arguments; it must refuse and leave no run directory behind."""

    def erase(*arguments, model=files.model, classes=CLASSES):
        out = tmp_path / "run"
        done = run("erase", model, "--out", out, *classes, *QUICK, *arguments)
        assert not out.exists()
        return done

    return erase


@pytest.fixture
def model_copy(files, tmp_path):
    shutil.copytree(files.model, tmp_path / "model")
    return tmp_path / "model"


# ---- the model


def test_no_model(erase, tmp_path):
    refused(erase(model=tmp_path / "nothing"), tmp_path / "nothing", "is missing", "expected")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_weights(erase, model_copy, share):
    weights = model_copy / "unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    refused(erase(model=model_copy), "unet", "copy it again")


def test_truncated_description(erase, model_copy):
    path = model_copy / "pecker_fast.json"
    path.write_text(path.read_text()[:20])
    refused(erase(model=model_copy), path, "JSON")


def test_no_schedule(erase, model_copy):
    shutil.rmtree(model_copy / "scheduler")
    refused(erase(model=model_copy), "scheduler_config.json is missing")


def test_weights_of_another_size(erase, model_copy):
    path = model_copy / "unet/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "block_out_channels": [16, 16]}))
    refused(erase(model=model_copy), "unet")


# ---- classes and settings


@pytest.mark.parametrize("option", ["--forget", "--override"])
def test_unknown_class(erase, option):
    refused(erase(option, "hexagon"), "'hexagon'", "circle", "square", "star")


@pytest.mark.parametrize("override", ["star", "STAR", "2"])
def test_forget_is_override(erase, override):
    refused(erase("--override", override), "same class", "choose another override")


@pytest.mark.parametrize("command", ["erase", "mask"])
def test_classes_not_given(run, files, command, tmp_path):
    done = run(command, files.model, "--out", tmp_path / "x", "--forget", "star")
    refused(done, "--forget and --override")


@pytest.mark.parametrize("density", ["0", "-0.1", "1.01", "nan", "inf"])
def test_density_out_of_range(erase, density):
    refused(erase("--density", density), f"--density {density}", "at most 1")
    refused(erase("--set", f"mask.density={density}"), "mask.density")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("generator.learning_rate=1", ["unknown configuration key", "did you mean"]),
        ("densty=0.1", ["'densty'", "did you mean"]),
        ("generator.lr=fast", ["generator.lr", "'fast'"]),
        ("generator.lr", ["KEY=VALUE"]),
        ("diffusion.t_init=1000", ["t_init", "999"]),
        ("optimizer.backend=tpu", ["'tpu'", "reference"]),
    ],
)
def test_bad_settings(erase, setting, words):
    refused(erase("--set", setting), *words)


def test_unknown_key_in_a_file(erase, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("mask:\n  densities: 0.1\n")
    refused(erase("--config", path), "'mask.densities'", "mask.density", path)


def test_no_such_recipe(erase):
    refused(erase("--config", "cifar11"), "cifar11", "cifar10")


def test_iterations_below_zero(erase):
    refused(erase("--iterations", "-1"), "iterations", "-1")


# ---- masks, classifiers, statistics


def test_mask_of_another_model(erase, tmp_path):
    other = torch.nn.Linear(3, 4)
    SaliencyMask.full(other).save(tmp_path / "mask.safetensors")
    refused(erase("--mask-file", tmp_path / "mask.safetensors"), "conv_in.weight")


def test_truncated_mask(erase, files, tmp_path):
    path = tmp_path / "mask.safetensors"
    SaliencyMask.full(ModelFolder.load(files.model).unet).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    refused(erase("--mask-file", path), path, "damaged")


def test_no_classifier(erase, tmp_path):
    refused(erase("--classifier", tmp_path / "none"), tmp_path / "none", "no such file or folder")


def test_classifier_of_fewer_classes(run, files, tmp_path):
    from pecker_fast.evaluate.classifier import SmallClassifier

    SmallClassifier(2, width=4).save(tmp_path / "two")
    done = run(
        "evaluate", files.model, "--classifier", tmp_path / "two", "--forget", 0,
        "--per-class", 2, "--steps", 1,
    )  # fmt: skip
    refused(done, "2 classes, but the model has 3")


def test_statistics_without_classifier(erase, files):
    refused(erase("--statistics", files.statistics), "--statistics needs --classifier")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((4, 1, 8, 8), np.uint8)}, ["images and labels"]),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4)},
            ["expected images (N, 1, 8, 8)", "(4, 8, 8)"],
        ),
        (
            {"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.arange(4) % 2},
            ["class 2 has 0 images"],
        ),
    ],
)
def test_bad_real_images(erase, files, tmp_path, arrays, words):
    np.savez(tmp_path / "real.npz", **arrays)
    arguments = ["--classifier", files.classifier, "--statistics", tmp_path / "real.npz"]
    refused(erase(*arguments), *words)


# ---- output


def test_output_is_a_file(run, files, tmp_path):
    (tmp_path / "run").write_text("precious")
    done = run("erase", files.model, "--out", tmp_path / "run", *CLASSES, *QUICK)
    refused(done, tmp_path / "run", "is a file")
    assert (tmp_path / "run").read_text() == "precious"


def test_output_below_a_file(run, files, tmp_path):
    (tmp_path / "file").write_text("precious")
    done = run("erase", files.model, "--out", tmp_path / "file" / "run", *CLASSES, *QUICK)
    refused(done, "cannot write to", "Not a directory")


def test_directory_with_other_things(run, files, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for force in ([], ["--force"]):
        done = run("erase", files.model, "--out", tmp_path, *CLASSES, *QUICK, *force)
        refused(done, tmp_path, "is not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_directory_in_use(files, run, tmp_path):
    out = tmp_path / "run"
    holder = (
        "import sys; from pecker_fast.runs.checkpoint import RunDirectory; "
        "directory = RunDirectory(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"held\n"
        for force in ([], ["--force"]):
            done = run("erase", files.model, "--out", out, *CLASSES, *QUICK, *force)
            refused(done, f"in use by process {child.pid}", "choose another directory")
    finally:
        child.communicate()


def test_the_run_of_another_model(run, files, model_copy, tmp_path):
    out = tmp_path / "run"
    assert run("erase", files.model, "--out", out, *CLASSES, *QUICK).code == 0
    model = ModelFolder.load(model_copy)
    with torch.no_grad():
        model.unet.conv_in.bias.add_(1)
    model.save(model_copy)
    refused(run("erase", model_copy, "--out", out, *CLASSES, *QUICK), "another model")


def test_read_only_place(run, files, tmp_path, monkeypatch):
    # Root ignores permission bits, so the refusal is the system call's own.
    def refuse(path, *_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    done = run("erase", files.model, "--out", tmp_path / "run", *CLASSES, *QUICK)
    refused(done, tmp_path / "run", "Read-only file system", "choose another")


def test_read_only_folder_for_a_file(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    done = run("sample", files.model, "--png", tmp_path / "x.png")
    refused(done, tmp_path, "cannot be written to")


def limited(bytes_, *arguments):
    """Run the command line as a process whose files may not grow beyond `bytes_`."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_})); "
        "from pecker_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return type("Done", (), {"code": done.returncode, "out": done.stdout, "err": done.stderr})


def test_full_disk_in_a_run(run, files, tmp_path):
    # The file system refuses to let any file grow beyond a limit: a checkpoint is larger, the
    # configuration and the mask are not. What was there before stays and is taken up again.
    out = tmp_path / "run"
    first = [*QUICK, "--iterations", "2"]
    assert run("erase", files.model, "--out", out, *CLASSES, *first).code == 0
    checkpoint = out / "checkpoint-00000002.pt"
    before = checkpoint.read_bytes()
    limit = len(before) // 2
    done = limited(limit, "erase", files.model, "--out", out, *CLASSES, *QUICK)
    refused(done, "File too large", "checkpoint of iteration 2 is intact", "free some space")
    assert checkpoint.read_bytes() == before
    assert not list(out.glob(".*")) and not (out / "checkpoint-00000004.pt").exists()
    done = run("erase", files.model, "--out", out, *CLASSES, *QUICK)
    assert done.code == 0 and "resuming at iteration 2 of 4" in done.err


@pytest.mark.parametrize("option", ["--npz", "--png"])
def test_full_disk_for_a_file(files, tmp_path, option):
    arguments = ["sample", files.model, option, tmp_path / f"x.{option[2:]}", "--steps", 1]
    refused(limited(1000, *arguments), "File too large")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_for_the_model(run, files, tmp_path, monkeypatch):
    # safetensors has an exception of its own for a disk that is full.
    from safetensors import SafetensorError

    def fail(self, path):
        Path(path).mkdir(parents=True)
        (Path(path) / "half").write_text("written")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(ModelFolder, "save", fail)
    out = tmp_path / "run"
    refused(run("erase", files.model, "--out", out, *CLASSES, *QUICK), "No space left on device")
    assert not (out / "model").exists() and not list(out.glob(".*"))
    assert (out / "checkpoint-00000004.pt").exists()


def test_sampling_into_nowhere(run, files, tmp_path):
    refused(run("sample", files.model), "--png FILE")
    refused(run("sample", files.model, "--png", tmp_path), "is a folder")
    refused(run("sample", files.model, "--png", tmp_path / "a" / "b.png"), "no such folder")


def test_too_many_steps(run, files, tmp_path):
    done = run("sample", files.model, "--npz", tmp_path / "x.npz", "--steps", 1001)
    refused(done, "at most the 1000 steps")
    assert list(tmp_path.iterdir()) == []


# ---- while it runs


def test_nan_loss_keeps_the_last_good_checkpoint(run, files, tmp_path):
    out = tmp_path / "run"
    steps = ["--set", "logging.checkpoint_every=1", "--set", "generator.lr=1e15"]
    done = run("erase", files.model, "--out", out, *CLASSES, *QUICK, *steps)
    refused(done, "nan", "checkpoint of iteration", "lower generator.lr")
    with RunDirectory(out) as directory:
        saved = directory.load()
    assert all(torch.isfinite(v).all() for v in saved["networks"]["generator"].values())
    assert not (out / "model").exists()


@pytest.mark.parametrize(
    ("device", "words"),
    [("gpu", ["unknown device"]), ("cuda:99", ["CUDA devices", "--device cpu"]), ("meta", ["cpu"])],
)
def test_no_such_device(run, files, tmp_path, device, words):
    done = run("sample", files.model, "--png", tmp_path / "x.png", "--device", device)
    refused(done, f"--device {device}", *words)


@pytest.mark.parametrize(
    "arguments",
    [["bake"], ["sample"], ["sample", "x", "--steps", "many"], ["info", "--yaml"]],
)
def test_usage_errors(run, arguments):
    done = run(*arguments)
    assert done.code == 2 and done.out == "" and "Usage:" in done.err and "Error:" in done.err
