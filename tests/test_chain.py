"""The whole chain by the command line, on real images: from data to comparison.

Networks, runs and numbers of images are small: held to account is that the commands fit together,
that figures count and name what they rest on, and that training learns at all. A minute on one
core.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_data import fashion_in_colour, write_images
from inception_weights import small_inception

from pecker_fast import cli
from pecker_fast.datasets import fashion_mnist
from pecker_fast.datasets.loading import load_images
from pecker_fast.distill.losses import pseudo_score_loss
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.fidelity import Inception
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder

NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress")
DATA = "--dataset images --data-root data"
FEW = "--dataset images --data-root few"  # 2 of each class: Inception is slow
TEACHER = (
    "train-teacher --config small_teacher --set batch_size=16 --set lr=2e-3 --set ema.decay=0.9 "
    "--set lr_schedule=constant --set network.channels=32 --set network.channel_mult=[1,1] "
    f"--set network.attention_levels=[1] --set network.patch_size=2 {DATA}"
)
JUDGE = f"train-classifier --arch small --iterations 60 --set batch_size=64 --set width=16 {DATA}"
METHODS = {
    "pecker": "--config cifar10_forget --forget Dress --override T-shirt/top --density 0.2 "
    "--set batch_size=8 --set saliency.batches=2 --set saliency.batch_size=16",
    "salun": "--config cifar10_salun --forget dress "
    f"--set batch_size=16 --set saliency.batch_size=64 {DATA}",
}
SAMPLERS = {"pecker": "", "salun": "--steps 4", "retrained": "--steps 4"}
POINTS = list(range(13))  # iterations of a curve, and of a run
FIGURES = ("class_accuracy", "forget_probability", "forget_entropy", "frechet")


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """Run a command line in a folder of its own; it must succeed. What it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Inception, "load", small_inception)

    def run(line):
        words = line.split()
        code = cli.main(words if words[0] == "compare" else [*words, "--threads", "1"])
        out, err = capfd.readouterr()
        assert code == 0, (line, err)
        return out + err

    return run


@pytest.mark.slow
@pytest.mark.timeout(1200)  # for machines that are busy with other tests
def test_from_image_files_to_a_comparison(run, weights):
    if not fashion_mnist.DEFAULT_FOLDER.is_dir():
        pytest.skip("no Fashion-MNIST: install Debian's package dataset-fashion-mnist")
    train, test = fashion_in_colour("train", 1000, 4), fashion_in_colour("test", 200, 4)
    few = np.concatenate([np.flatnonzero(train[1] == label)[:2] for label in range(4)])
    write_images(Path("data"), train, test, NAMES)
    write_images(Path("few"), (train[0][few], train[1][few]), test, NAMES)
    np.savez("test.npz", images=test[0], labels=test[1], class_names=np.array(NAMES))
    Path("inception.pth").symlink_to(weights)
    train_teachers(run)
    train_classifier(run)
    find_masks_and_erase(run)
    evaluate(run)
    compare(run)


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def train_teachers(run):
    """The original, made longer once, and what it would be without the class."""
    run(f"{TEACHER} --out teacher --iterations 60")
    before = denoising_loss("teacher/model")
    assert "resuming at iteration 60 of 300" in run(f"{TEACHER} --out teacher --iterations 300")
    assert 0.5 > before > 1.5 * denoising_loss("teacher/model") > 0
    run(f"{TEACHER} --out retrained --iterations 20 --without dress")
    images = ModelFolder.load("retrained/model").figures["training"]["images"]
    assert images.endswith("1,000 training images, 32x32, without 'Dress'")


@torch.no_grad()
def denoising_loss(folder):
    """Of the test images, per pixel: 1 for a network that predicts nothing."""
    model, images = ModelFolder.load(folder), load_images("images", Path("data"), "test")
    assert (model.class_names, model.image_shape) == (images.class_names, images.image_shape)
    x = model.encode(images.batch(torch.arange(200), torch.device("cpu")))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    t, schedule = torch.arange(200) * 5, NoiseSchedule.from_scheduler(model.scheduler)
    return (
        float(pseudo_score_loss(model.network, x, noise, t, images.labels, schedule).mean()) / 3072
    )


def train_classifier(run):
    """It names the test images, and says the same of them where they come as images on disk."""
    run(f"{JUDGE} --out judge")
    run("evaluate --images test.npz --classifier judge --forget Dress --json test.json")
    card, found, labels = read("judge/card.json"), read("test.json"), np.load("test.npz")["labels"]
    assert card["test_accuracy"] > 0.85
    assert found["class_accuracy"] == card["class_test_accuracy"]
    assert (found["forget_count"], found["keep_count"]) == (sum(labels == 3), sum(labels != 3))


def find_masks_and_erase(run):
    """PECKER finds the mask that `mask` found; SalUn is given its mask."""
    more = {"pecker": "", "salun": "--mask-file salun.safetensors"}
    judged = "--classifier judge --per-class 2 --curve-per-class 2 --teacher-steps 4"
    for name, kind, steps in (("pecker", "saliency", 1), ("salun", "given", 4)):
        run(f"mask teacher {METHODS[name]} --out {name}.safetensors")
        options = f"{METHODS[name]} {more[name]} {judged} --iterations 12"
        done = run(f"erase teacher {options} --out {name}")
        assert "of 2 images asked for it are recognised as Dress" in done
        report, curve = read(f"{name}/report.json"), read(f"{name}/curve.json")
        assert (report["forget"], report["override"]) == ("Dress", "T-shirt/top")
        assert (report["mask"], report["iterations"]) == (kind, 12)
        assert report["after"]["steps"] == steps
        assert (report["teacher"]["steps"], report["teacher"]["per_class"]) == (4, 2)
        assert [point["iteration"] for point in curve] == POINTS
        for point in curve:
            assert (point["forget_count"], point["keep_count"]) == (2, 6) and point["frechet"] > 0
        check_frozen(name, report)


def check_frozen(name, report):
    """The mask of the run is the one that `mask` found, and no bit moved outside it."""
    mask = SaliencyMask.load(f"{name}/mask.safetensors")
    assert mask == SaliencyMask.load(f"{name}.safetensors")
    folders = (ModelFolder.load(f"{run}/model") for run in ("teacher", name))
    before, after = (dict(folder.network.named_parameters()) for folder in folders)
    salient = mask.to_dense()
    differ = {key: before[key].view(torch.int32) != after[key].view(torch.int32) for key in salient}
    assert not any((differ[key] & ~salient[key]).any() for key in salient)
    moved = sum(int(one.sum()) for one in differ.values())
    assert report["frozen_changed"] == 0 < report["salient_changed"] == moved


def evaluate(run):
    """The original and each run, judged alike; the figures are those that the runs gave."""
    judged = f"--classifier judge --per-class 2 {FEW} --inception inception.pth"
    run(f"evaluate teacher {judged} --steps 4 --forget Dress --json original.json")
    found = [original := read("original.json")]
    for name, sampler in SAMPLERS.items():
        run(f"evaluate {name} {judged} {sampler} --json {name}/evaluate.json")
        found.append(read(f"{name}/evaluate.json"))
    for one in found:
        assert one["forget_class"] == "Dress" and one["judge"] == original["judge"]
        assert (one["forget_count"], one["keep_count"], one["fidelity"]["count"]) == (2, 6, 6)
        assert one["fidelity"]["real_count"] == 6 and one["frechet_real_count"] > 700
        assert 0 < one["frechet"] < 1e6 and 0 < one["fidelity"]["fid"] < 1e6
    for name, one in zip(METHODS, found[1:3], strict=True):
        report = read(f"{name}/report.json")
        for key in FIGURES:
            assert report["after"][key] == pytest.approx(one[key], rel=1e-5), (name, key)
        assert report["frechet_teacher"] == pytest.approx(original["frechet"], rel=1e-5)


def compare(run):
    assert "note:" not in run("compare pecker salun retrained original.json --out comparison")
    table = Path("comparison/comparison.csv").read_text(encoding="utf-8").splitlines()
    rows = {row["run"]: row for row in csv.DictReader(table)}
    columns = ("method", "mask", "iterations", "forget_count", "keep_count", "fidelity_count")
    assert {name: ", ".join(row[key] for key in columns) for name, row in rows.items()} == {
        "pecker": "PECKER, saliency, 12, 2, 6, 6",
        "salun": "SalUn, given, 12, 2, 6, 6",
        "retrained": "retraining, , 20, 2, 6, 6",
        "original": "teacher, as it is, , , 2, 6, 6",
    }
    for name, row in rows.items():
        judged = read("original.json" if name == "original" else f"{name}/evaluate.json")
        found = (float(row["unlearning_accuracy"]), float(row["fid"]))
        assert found == (judged["unlearning_accuracy"], judged["fidelity"]["fid"]), name
    assert [rows[name]["frozen_changed"] for name in METHODS] == ["0", "0"]
    assert float(rows["pecker"]["density"]) == pytest.approx(0.2, abs=1e-4)
    points = Path("comparison/curves.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in points] == ["pecker"] * 13 + ["salun"] * 13
    assert "retrained" in Path("comparison/comparison.html").read_text(encoding="utf-8")
