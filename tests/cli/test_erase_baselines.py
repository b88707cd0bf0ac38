"""SalUn and the other baselines by the command line, on images in CIFAR-10's file format."""

import json
import os
import subprocess
import sys
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
from pecker_fast.methods.trainer import BaselineTrainer
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


def moved(finish):
    """A trainer's method that makes its result, with one frozen entry changed."""

    def result(trainer):
        network = finish(trainer)
        frozen = {name: ~salient for name, salient in trainer.mask.to_dense().items()}
        name = next(name for name, entries in frozen.items() if entries.any())
        place = tuple(frozen[name].nonzero()[0].tolist())
        network.get_parameter(name)[place] += 1
        return network

    return result


def weights_of(folder):
    return dict(ModelFolder.load(folder).unet.named_parameters())


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
    npz, out = tmp_path / "x.npz", tmp_path / "evaluate.json"
    done = run("sample", salun / "model", "--npz", npz, "--per-class", 2, "--steps", 2)
    assert done.code == 0, done.err
    done = run(
        "evaluate", salun / "model", "--classifier", made.classifier, "--forget", "star",
        "--per-class", 2, "--steps", 2, "--json", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(out.read_text())["forget_class"] == "star"


def test_frozen_entries_against_the_model_on_disk(salun, made):
    before, after = weights_of(made.model), weights_of(salun / "model")
    mask = SaliencyMask.load(salun / "mask.safetensors").to_dense()
    for name, old in before.items():
        assert torch.equal(old[~mask[name]], after[name][~mask[name]]), name
    assert any(not torch.equal(old, after[name]) for name, old in before.items())


@pytest.mark.parametrize("method", ["neggrad", "finetune", "esd"])
def test_the_other_methods(method, run, made, tmp_path):
    out = tmp_path / "run"
    done = run(
        "erase", made.model, "--config", f"cifar10_{method}", "--out", out, *made.data, *SMALL
    )
    assert done.code == 0, done.err
    assert SaliencyMask.load(out / "mask.safetensors").density == 1
    assert not (out / "report.json").exists()  # nobody judges
    before, after = weights_of(made.model), weights_of(out / "model")
    assert any(not torch.equal(old, after[name]) for name, old in before.items())


def test_a_run_is_taken_up_and_ends_with_the_same_bits(run, made, salun, tmp_path):
    out = tmp_path / "run"
    command = ("erase", made.model, "--config", "cifar10_salun", "--out", out, *made.data, *SMALL)
    assert run(*command, "--iterations", 2).code == 0
    done = run(*command, "--forget", "2")  # the same class by its number
    assert done.code == 0 and "resuming at iteration 2 of 4" in done.err
    assert (out / WEIGHTS).read_bytes() == (salun / WEIGHTS).read_bytes()
    done = run(*command, "--forget", "circle")
    assert done.code == 2 and "holds a run with forget 2, this one has 0" in done.err
    done = run("erase", made.model, "--out", out, "--forget", "star", "--override", "circle")
    assert done.code == 2 and "holds a run of another kind" in done.err
    assert (out / WEIGHTS).read_bytes() == (salun / WEIGHTS).read_bytes()


def test_two_processes_share_a_run(run, made, salun, tmp_path):
    # SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0.
    command = ["erase", made.model, "--config", "cifar10_salun", *made.data, *SMALL,
               "--set", "optimizer.eps=1", "--set", "optimizer.lr=0.05", "--out"]  # fmt: skip
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run(*command, alone).code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", "-m", "pecker_fast.cli", *command, together]  # fmt: skip
    done = subprocess.run(
        [str(part) for part in torchrun], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("erased model") == 1
    expected, start = weights_of(alone / "model"), weights_of(made.model)
    for name, value in weights_of(together / "model").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    assert (
        max(float((expected[name] - value).detach().abs().max()) for name, value in start.items())
        > 1e-3
    )
    masks = [SaliencyMask.load(path / "mask.safetensors") for path in (together, salun)]
    assert masks[0] == masks[1]


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


@pytest.mark.parametrize("config", ["cifar10_salun", "cifar10_forget"])
def test_a_mask_file_of_saluns_code(config, run, made, salun, tmp_path):
    """A dictionary of int64 tensors, under the names that DataParallel gives."""
    mask = SaliencyMask.load(salun / "mask.safetensors")
    dense = {f"module.{name}": value.long() for name, value in mask.to_dense().items()}
    torch.save(dense, tmp_path / "with_0.5.pt")
    data = made.data if config == "cifar10_salun" else ("--set", "saliency.batches=1")
    out = tmp_path / "run"
    command = ("erase", made.model, "--config", config, "--out", out, *data, *SMALL)
    done = run(*command, "--mask-file", tmp_path / "with_0.5.pt")
    assert done.code == 0, done.err
    assert SaliencyMask.load(out / "mask.safetensors") == mask
    if config == "cifar10_salun":
        assert (out / WEIGHTS).read_bytes() == (salun / WEIGHTS).read_bytes()


def test_mask_files_that_do_not_fit(run, made, salun, tmp_path):
    dense = SaliencyMask.load(salun / "mask.safetensors").to_dense()
    first = next(iter(dense))
    file, out = tmp_path / "with_0.5.pt", tmp_path / "run"
    cases = (
        (
            {**dense, "other.weight": torch.ones(3)},
            "names of the mask are not in the model: 'other",
        ),
        ({name: one for name, one in dense.items() if name != first}, f"mask has no '{first}'"),
        ({**dense, first: dense[first].flatten()[1:]}, f"'{first}' has shape"),
        ({**dense, first: dense[first] * 0.5}, f"mask of '{first}' holds 0.5"),
        ({**dense, "epoch": 3}, "holds int under 'epoch'"),
        ([dense], "holds a list"),
    )
    for content, message in cases:
        torch.save(content, file)
        done = run("erase", made.model, "--config", "cifar10_salun", "--out", out, *made.data,
                   *SMALL, "--mask-file", file)  # fmt: skip
        assert done.code == 2 and message in done.err, (message, done.err)
        assert not out.exists()


def test_a_frozen_entry_that_changed_ends_with_code_3(run, made, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ("erase", made.model, "--config", "cifar10_salun", "--out", out, *made.data, *SMALL)
    done = run(*command)
    assert done.code == 0, done.err
    assert "; 0 of them changed, compared bit by bit.\n" in done.out
    assert json.loads((out / "frozen.json").read_text())["frozen_changed"] == 0
    monkeypatch.setattr(BaselineTrainer, "erased_network", moved(BaselineTrainer.erased_network))
    done = run(*command)
    assert done.code == 3 and "; 1 of them changed" in done.out
    (name,) = json.loads((out / "frozen.json").read_text())["frozen_changed_in"]
    assert f"1 frozen entry of {name!r}" in done.err


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "dataset=null"), "trained on real images; name them: --dataset cifar10"),
        (("--dataset", "cifar10"), "--data-root is missing"),
        (("--generator", "x"), "--generator and --pseudo-score are for distillations"),
        (("--override", "star"), "the same class 'star': nothing would be forgotten"),
        (("--override", "2"), "'star' is the class to forget; choose another"),
        (("--override", "random"), "unknown class 'random'"),
        (("--set", "alpha=1"), "unknown configuration key 'alpha'"),
    ],
)
def test_what_is_refused(arguments, message, run, made, tmp_path):
    data = () if "dataset" in message or "data-root" in message else made.data
    out = tmp_path / "run"
    done = run("erase", made.model, "--config", "cifar10_salun", "--out", out, *data, *SMALL[:2],
               *arguments)  # fmt: skip
    assert done.code == 2 and message in done.err, done.err
    assert not out.exists()


def test_images_that_do_not_fit_the_model(run, files, made, tmp_path):
    done = run("erase", files.model, "--config", "cifar10_salun", "--out", tmp_path / "run",
               *made.data, *SMALL)  # fmt: skip
    assert done.code == 2 and "are (3, 8, 8), the model was made for (1, 8, 8)" in done.err
    assert not (tmp_path / "run").exists()


def test_one_step_is_none_for_a_many_step_model(run, made, tmp_path):
    done = run("erase", made.model, "--config", "cifar10_esd", "--out", tmp_path / "run",
               *made.data, "--classifier", made.classifier, "--teacher-steps", 1)  # fmt: skip
    assert done.code == 2 and "--teacher-steps must be at least 2" in done.err


@pytest.mark.parametrize("command", ["erase", "mask"])
def test_a_distillation_needs_no_images(command, run, files, tmp_path):
    done = run(command, files.model, "--forget", "star", "--override", "circle", "--out",
               tmp_path / "out", "--data-root", tmp_path)  # fmt: skip
    assert done.code == 2
    assert f"{command}: --data-root is for methods that are trained on real images" in done.err
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_holds_what_resuming_needs(salun):
    with RunDirectory(salun) as directory:
        saved = directory.load()
    assert saved["iteration"] == 4 and saved["seconds"] > 0
