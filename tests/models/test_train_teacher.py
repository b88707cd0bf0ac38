"""Training on real images: short, but the losses must fall and the folder must be usable."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from pecker_fast.cli import group
from pecker_fast.datasets import fashion_mnist
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.models import ModelFolder
from pecker_fast.models.train_teacher import (
    TeacherRecipe,
    build_scheduler,
    build_unet,
    train_classifier,
    train_teacher,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def real() -> tuple[torch.Tensor, torch.Tensor]:
    if not fashion_mnist.DEFAULT_FOLDER.is_dir():
        pytest.skip("no Fashion-MNIST: install Debian's package dataset-fashion-mnist")
    images, labels = fashion_mnist.load_split(fashion_mnist.DEFAULT_FOLDER, "test")
    return images[:3000], labels[:3000]


def denoising_loss(unet: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    torch.manual_seed(1)
    x = F.pixel_unshuffle(images, 2)
    noise, t = torch.randn_like(x), torch.randint(1000, (len(x),))
    alpha = build_scheduler().alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        predicted = unet(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, t, class_labels=labels)
    return float(F.mse_loss(predicted.sample, noise))


def test_teacher_learns_to_denoise(real: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = real
    recipe = TeacherRecipe(channels=(16, 16), steps=60, batch_size=32, ema_decay=0.5)
    held_out = images[2800:], labels[2800:]
    torch.manual_seed(recipe.seed)
    before = denoising_loss(build_unet(recipe, 10, (1, 28, 28)), *held_out)
    unet = train_teacher(images[:2800], labels[:2800], 10, recipe, CPU)
    after = denoising_loss(unet, *held_out)
    assert before > 0.9  # noise has variance 1
    assert after < 0.6
    assert not unet.training


def test_same_seed_gives_the_same_teacher(real: tuple[torch.Tensor, torch.Tensor]) -> None:
    recipe = TeacherRecipe(channels=(8,), steps=3, batch_size=4)
    first, second = (train_teacher(*real, 10, recipe, CPU).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_classifier_learns(real: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = real
    classifier = train_classifier(images[:2500], labels[:2500], 10, CPU, epochs=2)
    with torch.no_grad():
        predicted = classifier(images[2500:]).argmax(dim=1)
    assert float((predicted == labels[2500:]).float().mean()) > 0.6  # chance is 0.1


def test_command_writes_a_usable_folder(
    real: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fashion_mnist, "load_split", lambda folder, split: (real[0][:300], real[1][:300])
    )
    out = tmp_path / "teacher"
    arguments = ["train-teacher", "--out", str(out), "--steps", "2", "--batch-size", "4"]
    arguments += ["--classifier-epochs", "1", "--per-class", "2", "--threads", "1"]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    folder = ModelFolder.load(out)
    assert folder.class_names == fashion_mnist.CLASS_NAMES
    assert folder.image_shape == (1, 28, 28)
    assert folder.figures["training"]["recipe"]["steps"] == 2
    assert folder.figures["teacher"]["per_class"] == 2
    assert load_classifier(out / "classifier").num_classes == 10
    assert ClassStatistics.load(out / "statistics.safetensors").num_classes == 10
    assert not out.with_name("teacher.partial").exists()


def test_command_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["train-teacher", "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert "exists; name a new folder" in str(result.exception)
