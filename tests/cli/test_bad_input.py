"""Bad input: exit code 2, one line that names the thing, nothing half-written."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch
from distributed.processes import run_commands

from pecker_fast.models import ModelFolder
from pecker_fast.runs.directory import RunDirectory

QUICK = [
    "--iterations", "4", "--set", "batch_size=2", "--set", "saliency.batches=1",
    "--set", "saliency.batch_size=2", "--set", "generator.lambda_forget=1",
]  # fmt: skip
CLASSES = ["--forget", "star", "--override", "circle"]


@pytest.fixture
def erase(run, files, tmp_path):
    """Run `erase` with extra arguments into `tmp_path / "run"`."""

    def erase(*arguments, model=files.model, out=tmp_path / "run"):
        return run("erase", model, "--out", out, *CLASSES, *QUICK, *arguments)

    return erase


# ---- output


def test_directory_in_use(erase, refused, tmp_path):
    with RunDirectory(tmp_path / "run"):
        for force in ([], ["--force"]):
            refused(erase(*force), f"process {os.getpid()}")


def test_read_only_places(run, refused, erase, files, tmp_path, monkeypatch):
    # Root ignores permission bits, so the refusal is the system call's own.
    def refuse(path, *_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refuse)
        refused(erase(), tmp_path / "run", os.strerror(errno.EROFS))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    refused(run("sample", files.model, "--png", tmp_path / "x.png"), tmp_path)


def limited(bytes_, *arguments):
    """Run the command line as a process whose files may not grow beyond `bytes_`."""
    (code,), (out,), (err,) = run_commands(1, *arguments, largest_file=bytes_)
    return SimpleNamespace(code=code, out=out, err=err)


@pytest.mark.parametrize("key", ["batch_size", "saliency.batch_size"])
def test_a_batch_that_does_not_fit_into_memory(erase, refused, key):
    done = erase("--set", f"{key}={10**13}")
    refused(done, "out of memory", "GiB", f"{key} (now {10**13})", "micro_batch=1, recompute=true")


@pytest.mark.slow
def test_full_disk_for_a_file(refused, files, tmp_path):
    arguments = ["sample", files.model, "--png", tmp_path / "x.png", "--steps", 1]
    refused(limited(1000, *arguments), os.strerror(errno.EFBIG))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_for_the_model(erase, refused, tmp_path, monkeypatch):
    # safetensors has an exception of its own for a disk that is full.
    from safetensors import SafetensorError

    def fail(self, path, network):
        path.mkdir(parents=True)
        (path / "half").write_text("written")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(ModelFolder, "_write", fail)
    out = tmp_path / "run"
    refused(erase(), "No space left on device")
    assert not (out / "model").exists() and not list(out.glob(".*"))
    assert (out / "checkpoint-00000004.pt").exists()


# ---- while it runs, and other commands


def test_nan_loss_keeps_the_last_good_checkpoint(erase, refused, tmp_path):
    out = tmp_path / "run"
    refused(
        erase("--set", "logging.checkpoint_every=1", "--set", "generator.lr=1e15"),
        "nan",
        "generator.lr",
    )
    with RunDirectory(out) as directory:
        saved = directory.load()
    assert all(torch.isfinite(v).all() for v in saved["networks"]["generator"].values())
    assert not (out / "model").exists()
