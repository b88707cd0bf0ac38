"""SalUn and the other baselines by the command line, on images in CIFAR-10's file format."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from image_data import random_images, write_images
from tiny_models import tiny_scheduler

from pecker_fast import cli
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.runs.checkpoint import RunDirectory

NAMES = ("circle", "square", "star")
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
SMALL = (
    "--forget", "star", "--iterations", "4", "--set", "batch_size=3",
    "--set", "saliency.batch_size=8", "--set", "logging.checkpoint_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Read-only: `model`, `classifier`, `statistics`, and the options `data` for its images."""
    root = tmp_path_factory.mktemp("baselines")
    torch.manual_seed(0)
    unet = DDPMUNet(
        sample_size=8,
        in_channels=3,
        num_classes=3,
        channels=4,
        channel_mult=(1, 2),
        attention_levels=(1,),
        blocks_per_level=1,
        norm_num_groups=2,
        dropout=0.0,  # would differ between processes
    )
    with torch.no_grad():  # the last layer is zero at first: nothing below it would have a gradient
        for param in unet.parameters():
            param.add_(0.05 * torch.randn_like(param))
    ModelFolder(unet, tiny_scheduler(), NAMES).save(root / "model")
    SmallClassifier(3, in_channels=3, width=4).save(root / "classifier")
    train, test = random_images(60, 3), random_images(12, 3, seed=1)
    write_images(root / "data", train, test, NAMES)
    np.savez(root / "real.npz", images=train[0], labels=train[1])
    return SimpleNamespace(
        root=root,
        model=root / "model",
        classifier=root / "classifier",
        statistics=root / "real.npz",
        data=("--dataset", "images", "--data-root", root / "data"),
    )


@pytest.fixture(scope="module")
def salun(made, tmp_path_factory):
    """A finished run of SalUn with a report; read-only."""
    out = tmp_path_factory.mktemp("salun") / "run"
    judge = ("--classifier", made.classifier, "--statistics", made.statistics, "--per-class", 4,
             "--teacher-steps", 3)  # fmt: skip
    arguments = ["erase", made.model, "--config", "cifar10_salun", "--out", out, *made.data, *SMALL]
    assert cli.main([str(argument) for argument in (*arguments, *judge)]) == 0
    return out


@pytest.fixture
def erase(run, made, tmp_path):
    """Run a method of these images into `tmp_path / "run"`."""

    def erase(*arguments, method="salun", out=tmp_path / "run", data=made.data):
        config = ("--config", f"cifar10_{method}")
        # Given again it would be a second class.
        settings = SMALL[2:] if "--forget" in arguments else SMALL
        return run("erase", made.model, *config, "--out", out, *data, *settings, *arguments)

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
    assert "Both need 3 network evaluations" in page and "one-step" not in page
    assert "Trained on" in page


def test_the_result_is_a_many_step_model(salun, run, made, tmp_path):
    model = ModelFolder.load(salun / "model")
    assert model.kind == "teacher" and model.null_label == 3
    assert model.figures["forget"] == "star" and model.figures["method"] == "random_label"
    png, out = tmp_path / "x.png", tmp_path / "evaluate.json"
    done = run("sample", salun / "model", "--png", png, "--per-class", 2, "--steps", 2)
    assert done.code == 0, done.err
    done = run(
        "evaluate", salun / "model", "--classifier", made.classifier, "--forget", "star",
        "--per-class", 2, "--steps", 2, "--json", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(out.read_text())["forget_class"] == "star"


@pytest.mark.parametrize("method", ["neggrad", "finetune", "esd"])
def test_the_other_methods(method, erase, made, tmp_path):
    done = erase(method=method)
    assert done.code == 0, done.err
    out = tmp_path / "run"
    assert SaliencyMask.load(out / "mask.safetensors").density == 1
    assert not (out / "report.json").exists()  # nobody judges
    before, after = weights_of(made.model), weights_of(out / "model")
    assert any(not torch.equal(old, after[name]) for name, old in before.items())


def test_a_run_is_taken_up_and_ends_with_the_same_bits(run, erase, refused, made, salun, tmp_path):
    weights = tmp_path / "run" / WEIGHTS
    assert erase("--iterations", 2).code == 0
    done = erase("--forget", "2")  # the same class by its number
    assert done.code == 0 and "resuming at iteration 2 of 4" in done.err
    assert weights.read_bytes() == (salun / WEIGHTS).read_bytes()
    refused(erase("--forget", "circle"), "forget 2", "0")
    classes = ("--forget", "star", "--override", "circle")
    refused(run("erase", made.model, "--out", tmp_path / "run", *classes), "another kind")
    assert weights.read_bytes() == (salun / WEIGHTS).read_bytes()
    with RunDirectory(salun) as directory:
        saved = directory.load()
    assert saved["iteration"] == 4 and saved["seconds"] > 0


# ---- redirecting: no images


KEEP_STEPS = (*SMALL[:-4], "--set", "batch_size=3", "--set", "saliency.batch_size=4",
              "--set", "steps=3", "--override", "circle")  # fmt: skip


@pytest.mark.slow
def test_keep_steps_needs_no_images_and_stops_when_the_class_is_gone(run, made, tmp_path):
    until = "until={forget: 0.99, keep_drop: 0.99, every: 1, images: 4, steps: 2}"
    judge = ("--classifier", made.classifier, "--per-class", 2, "--teacher-steps", 3)
    out = tmp_path / "run"
    command = ("erase", made.model, "--keep-steps", *KEEP_STEPS, "--out", out)
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
    done = run("mask", made.model, *settings, *small, "--out", mask)
    assert done.code == 0, done.err
    assert SaliencyMask.load(mask) == SaliencyMask.load(out / "mask.safetensors")


# ---- masks


def test_mask_makes_the_mask_that_the_run_finds(run, made, salun, tmp_path):
    out = tmp_path / "salun.safetensors"
    done = run("mask", made.model, "--config", "cifar10_salun", *made.data, *SMALL[:2],
               "--set", "saliency.batch_size=8", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    assert SaliencyMask.load(out) == SaliencyMask.load(salun / "mask.safetensors")
    assert "salient for 'star' (density 0.5, saliency)" in done.out
    assert "found on star in data, 60 training images" in done.out
    assert out.with_suffix(".png").is_file()


@pytest.mark.parametrize("method", ["salun", "forget"])
def test_a_mask_file_of_saluns_code(method, erase, made, salun, tmp_path):
    """A dictionary of int64 tensors, under the names that DataParallel gives."""
    mask = SaliencyMask.load(salun / "mask.safetensors")
    dense = {f"module.{name}": value.long() for name, value in mask.to_dense().items()}
    torch.save(dense, tmp_path / "with_0.5.pt")
    data = made.data if method == "salun" else ("--set", "saliency.batches=1")
    done = erase("--mask-file", tmp_path / "with_0.5.pt", method=method, data=data)
    assert done.code == 0, done.err
    assert SaliencyMask.load(tmp_path / "run" / "mask.safetensors") == mask
    if method == "salun":
        assert (tmp_path / "run" / WEIGHTS).read_bytes() == (salun / WEIGHTS).read_bytes()


# ---- what is refused
