"""A model folder, a classifier and real images on disk, all tiny and untrained."""

import signal
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_data import random_images, write_images
from tiny_models import model_of_shapes, tiny_scheduler
from tiny_pipeline import save_tiny_pipeline

from pecker_fast import cli
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.runs.directory import RunDirectory


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Read-only: `model`, `classifier`, `statistics` (an .npz of real images)."""
    root = tmp_path_factory.mktemp("files")
    model_of_shapes().save(root / "model")
    SmallClassifier(3, width=4).save(root / "classifier")
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez(root / "real.npz", images=images, labels=labels)
    return SimpleNamespace(
        root=root,
        model=str(root / "model"),
        classifier=str(root / "classifier"),
        statistics=str(root / "real.npz"),
    )


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """The same of images in three colours; `data`: options that name real images of its classes."""
    root, names = tmp_path_factory.mktemp("coloured"), ("circle", "square", "star")
    torch.manual_seed(0)
    unet = DDPMUNet(
        sample_size=8, in_channels=3, num_classes=3, channels=4, channel_mult=(1, 2),
        attention_levels=(1,), blocks_per_level=1, norm_num_groups=2,
        dropout=0.0,  # would differ between processes
    )  # fmt: skip
    with torch.no_grad():  # the last layer is zero at first: nothing below it would have a gradient
        for param in unet.parameters():
            param.add_(0.05 * torch.randn_like(param))
    ModelFolder(unet, tiny_scheduler(), names).save(root / "model")
    SmallClassifier(3, in_channels=3, width=4).save(root / "classifier")
    train, test = random_images(60, 3), random_images(12, 3, seed=1)
    write_images(root / "data", train, test, names)
    np.savez(root / "real.npz", images=train[0], labels=train[1])
    return SimpleNamespace(
        model=root / "model",
        classifier=root / "classifier",
        statistics=root / "real.npz",
        data=("--dataset", "images", "--data-root", root / "data"),
    )


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A pipeline folder, tiny and untrained; read-only."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    save_tiny_pipeline(folder, length=48)
    return folder


@pytest.fixture
def run(capfd):
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def ctrl_c_at_a_checkpoint(monkeypatch):
    """A context in which Ctrl-C comes as soon as a checkpoint is written."""

    @contextmanager
    def ctrl_c():
        save = RunDirectory.save

        def save_and_stop(directory, iteration, state):
            save(directory, iteration, state)
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(RunDirectory, "save", save_and_stop)
            yield

    return ctrl_c


@pytest.fixture
def refused():
    """Check how a command was refused: code 2, one line on stderr, which names the words given."""

    def refused(done, *words):
        assert done.code == 2, (done.code, done.err)
        assert "Traceback" not in done.err and done.out == ""
        messages = [line for line in done.err.splitlines() if line.startswith("pecker-fast: ")]
        assert len(messages) == 1 and done.err.endswith(messages[0] + "\n"), done.err
        for word in words:
            assert str(word) in messages[0], (word, messages[0])

    return refused
