"""`pecker-fast convert`: what it writes, and what it replaces."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_layouts import EMA, LAYOUTS, MODEL, PSI, Weights, assert_same, weights
from safetensors.torch import save_file

from pecker_fast.cli import main
from pecker_fast.cli.package import SLOTS
from pecker_fast.models import ModelFolder, published


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_knows_every_slot() -> None:
    assert SLOTS == published.SLOTS


def test_convert_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(LAYOUTS["under DataParallel"][0], tmp_path / "ckpt.pth")
    code, out, err = run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "model")
    assert (code, err) == (0, "")
    assert "took slot ema of ema, model, step 1\n" in out
    assert "3x32x32 images, width 32 x 1, 2\n" in out
    folder = ModelFolder.load(tmp_path / "model")
    assert_same(folder.network.state_dict(), EMA)
    assert (folder.kind, folder.null_label) == ("teacher", 3)
    assert folder.class_names == ("class 0", "class 1", "class 2")
    scheduler = dict(folder.scheduler.config)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(folder.scheduler.betas.double(), betas, rtol=1e-6, atol=0)
    assert (scheduler["clip_sample"], scheduler["prediction_type"]) == (False, "epsilon")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pth", "model"]


def test_convert_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(MODEL, tmp_path / "w.safetensors")
    code, out, err = run(capsys, tmp_path / "w.safetensors", "--out", tmp_path / "model")
    assert (code, err) == (0, "") and "took slot model of model\n" in out
    folder = ModelFolder.load(tmp_path / "model")
    assert_same(folder.network.state_dict(), MODEL)
    assert (folder.kind, folder.null_label) == ("teacher", 3)


@pytest.mark.parametrize(
    ("options", "expected", "kind", "t_init", "said"),
    [
        ((), EMA, "generator", 440, "a one-step generator"),
        (("--slot", "generator"), MODEL, "generator", 440, "a one-step generator"),
        (("--slot", "pseudo-score"), PSI, "teacher", None, "is not the teacher"),
    ],
)
def test_convert_a_distilled_checkpoint(
    options: tuple[str, ...],
    expected: Weights,
    kind: str,
    t_init: int | None,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(LAYOUTS["distilled"][0], tmp_path / "ckpt.pth")
    code, out, _ = run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "model", *options)
    assert code == 0 and said in out
    folder = ModelFolder.load(tmp_path / "model")
    assert_same(folder.network.state_dict(), expected)
    assert (folder.kind, folder.figures.get("t_init")) == (kind, t_init)
    assert folder.figures["converted_from"]["step"] == 49_999


@pytest.mark.parametrize(
    ("options", "sizes", "names"),
    [
        (("--classes", "ant, bee,cat"), {}, ("ant", "bee", "cat")),
        ((), {"num_classes": 10}, published.CLASS_NAMES["cifar10"]),
        (
            (),
            {"num_classes": 10, "channel_mult": (1, 1, 1), "attention_levels": (2,)},
            published.CLASS_NAMES["stl10"],
        ),
        (("--classes", "STL10"), {"num_classes": 10}, published.CLASS_NAMES["stl10"]),
    ],
)
def test_class_names(
    options: tuple[str, ...],
    sizes: dict[str, Any],
    names: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample_size = 16 * 2 ** (len(sizes.get("channel_mult", (1, 2))) - 1)
    torch.save(weights(0, sample_size=sample_size, **sizes), tmp_path / "ckpt.pth")
    assert run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "model", *options)[0] == 0
    assert ModelFolder.load(tmp_path / "model").class_names == names
