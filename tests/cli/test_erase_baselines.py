"""SalUn and the other baselines by the command line, on images in CIFAR-10's file format."""

import json

import pytest
import torch
import yaml

from pecker_fast import cli
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder

NAMES = ("circle", "square", "star")
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
SMALL = (
    "--forget", "star", "--iterations", "4", "--set", "batch_size=3",
    "--set", "saliency.batch_size=8", "--set", "logging.checkpoint_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def salun(coloured, tmp_path_factory):
    """A finished run of SalUn with a report; read-only."""
    out = tmp_path_factory.mktemp("salun") / "run"
    arguments = (
        "erase", coloured.model, "--config", "cifar10_salun", "--out", out, *coloured.data, *SMALL,
        "--classifier", coloured.classifier, "--statistics", coloured.statistics,
        "--per-class", 4, "--teacher-steps", 3,
    )  # fmt: skip
    assert cli.main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture
def erase(run, coloured, tmp_path):
    """Run a method of these images into `tmp_path / "run"`."""

    def erase(*arguments, recipe="salun", method=None, data=coloured.data):
        chosen = () if method is None else ("--set", f"method={method}")
        config = ("--config", f"cifar10_{recipe}", *chosen, "--out", tmp_path / "run")
        return run("erase", coloured.model, *config, *data, *SMALL, *arguments)

    return erase


def weights_of(folder):
    return dict(ModelFolder.load(folder).network.named_parameters())


def test_the_run_directory_is_that_of_a_distillation(salun):
    names = {path.name for path in salun.iterdir()}
    assert names >= {
        "config.yaml", "mask.safetensors", "curve.json", "report.json", "report.html", "model",
        "before_after.png", "accuracy.png", "density.png", "checkpoint-00000002.pt",
        "checkpoint-00000004.pt",
    }  # fmt: skip
    config = yaml.safe_load((salun / "config.yaml").read_text())
    assert (config["method"], config["dataset"]) == ("random_label", "images")
    assert (config["forget"], config["override"]) == (2, 0)  # the next class, which is the first
    points = json.loads((salun / "curve.json").read_text())
    assert [point["iteration"] for point in points] == [0, 1, 2, 3, 4]
    seconds = [point["wall_s"] for point in points]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[-1]


def test_the_report_compares_many_steps_with_many_steps(salun):
    report = json.loads((salun / "report.json").read_text())
    assert (report["teacher"]["steps"], report["after"]["steps"]) == (3, 3)
    assert (report["forget"], report["override"]) == ("star", "circle")
    assert report["config"]["method"] == "random_label"
    assert report["images"] == "data, 60 training images, 8x8"
    assert (report["mask"], report["iterations"]) == ("saliency", 4)
    assert report["density"] == pytest.approx(0.5, abs=1e-3)
    assert report["frozen_changed"] == 0 < report["salient_changed"]
    page = (salun / "report.html").read_text(encoding="utf-8")
    assert "Trained on" in page


def test_the_result_is_a_many_step_model(salun, run, tmp_path):
    model = ModelFolder.load(salun / "model")
    assert model.kind == "teacher" and model.null_label == 3
    assert model.figures["forget"] == "star" and model.figures["method"] == "random_label"
    words = ("--png", tmp_path / "x.png", "--per-class", 2, "--steps", 2)
    assert run("sample", salun / "model", *words).code == 0


@pytest.mark.parametrize("method", ["negative_gradient", "fine_tune", "esd"])
def test_the_other_methods(method, erase, coloured, tmp_path):
    done = erase(method=method)
    assert done.code == 0, done.err
    out = tmp_path / "run"
    assert SaliencyMask.load(out / "mask.safetensors").density == 1
    assert not (out / "report.json").exists()  # nobody judges
    before, after = weights_of(coloured.model), weights_of(out / "model")
    assert any(not torch.equal(old, after[name]) for name, old in before.items())


# ---- redirecting: no images


KEEP_STEPS = (*SMALL[:-4], "--set", "batch_size=3", "--set", "saliency.batch_size=4",
              "--set", "steps=3", "--override", "circle")  # fmt: skip


@pytest.mark.slow
def test_keep_steps_needs_no_images_and_stops_when_the_class_is_gone(run, coloured, tmp_path):
    until = "until={forget: 0.99, keep_drop: 0.99, every: 1, images: 4, steps: 2}"
    judge = ("--classifier", coloured.classifier, "--per-class", 2, "--teacher-steps", 3)
    out = tmp_path / "run"
    command = ("erase", coloured.model, "--keep-steps", *KEEP_STEPS, "--out", out)
    done = run(*command, *judge, "--set", until)
    assert done.code == 0, done.err
    assert "over at iteration 1 of 4" in done.err
    report = json.loads((out / "report.json").read_text())
    assert (report["teacher"]["steps"], report["after"]["steps"]) == (3, 3)
    assert (report["forget"], report["override"], report["images"]) == ("star", "circle", None)
    assert report["frozen_changed"] == 0 < report["salient_changed"]
    points = json.loads((out / "curve.json").read_text())
    assert [(p["iteration"], p["forget_count"], p["keep_count"]) for p in points] == [
        (0, 4, 4), (1, 4, 4)
    ]  # fmt: skip
    model = ModelFolder.load(out / "model")
    assert model.kind == "teacher" and model.figures["method"] == "redirect"
    mask = tmp_path / "mask.safetensors"
    settings = ("--config", "keep_steps", "--forget", "star", "--override", "circle")
    small = ("--set", "saliency.batch_size=4", "--set", "steps=3")
    done = run("mask", coloured.model, *settings, *small, "--out", mask)
    assert done.code == 0, done.err
    assert SaliencyMask.load(mask) == SaliencyMask.load(out / "mask.safetensors")


# ---- masks


def test_mask_makes_the_mask_that_the_run_finds(run, coloured, salun, tmp_path):
    out = tmp_path / "salun.safetensors"
    done = run("mask", coloured.model, "--config", "cifar10_salun", *coloured.data, *SMALL[:2],
               "--set", "saliency.batch_size=8", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    assert SaliencyMask.load(out) == SaliencyMask.load(salun / "mask.safetensors")
    assert "salient for 'star' (density 0.5, saliency)" in done.out
    assert "found on star in data, 60 training images" in done.out
    assert out.with_suffix(".png").is_file()


@pytest.mark.parametrize("recipe", ["salun", "forget"])
def test_a_mask_file_of_saluns_code(recipe, erase, coloured, salun, tmp_path):
    """A dictionary of int64 tensors, under the names that DataParallel gives."""
    mask = SaliencyMask.load(salun / "mask.safetensors")
    dense = {f"module.{name}": value.long() for name, value in mask.to_dense().items()}
    torch.save(dense, tmp_path / "with_0.5.pt")
    data = coloured.data if recipe == "salun" else ("--set", "saliency.batches=1")
    done = erase("--mask-file", tmp_path / "with_0.5.pt", recipe=recipe, data=data)
    assert done.code == 0, done.err
    assert SaliencyMask.load(tmp_path / "run" / "mask.safetensors") == mask
    if recipe == "salun":
        assert (tmp_path / "run" / WEIGHTS).read_bytes() == (salun / WEIGHTS).read_bytes()
