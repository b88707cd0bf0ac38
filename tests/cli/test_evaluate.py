"""`evaluate`: a model, its images on disk, real images, several processes, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from distributed.processes import run_commands
from inception_weights import small_inception
from PIL import Image
from run_folders import EVALUATION, FIDELITY, judgement

import pecker_fast.evaluate
from pecker_fast.evaluate.fidelity import WEIGHTS_SHA256, Inception
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.resnet import ResNetClassifier
from pecker_fast.models import ModelFolder

SAME = ("forget_accuracy", "forget_probability", "forget_entropy", "override_accuracy",
        "keep_accuracy", "class_accuracy", "unlearning_accuracy", "judge")  # fmt: skip


@pytest.fixture
def few_features(monkeypatch):
    monkeypatch.setattr(Inception, "load", small_inception)


MODEL = ("--per-class", 4, "--steps", 1, "--seed", 4)


@pytest.mark.slow
def test_images_on_disk_have_the_figures_of_the_model_that_drew_them(
    run, files, tmp_path, weights, few_features
):
    drawn = tmp_path / "drawn.npz"
    done = run("sample", files.model, "--out", drawn, *MODEL)
    assert done.code == 0, done.err
    classes = ("--classifier", files.classifier, "--forget", "star", "--override", "circle")
    fid = ("--real", files.statistics, "--inception", weights)
    model = run("evaluate", files.model, *classes, *MODEL, *fid, "--json", tmp_path / "a.json")
    assert model.code == 2 and "only" in model.err  # the .npz numbers its classes

    with np.load(files.statistics) as file:
        names = np.array(["circle", "square", "star"])
        np.savez(tmp_path / "real.npz", images=file["images"][:12], labels=file["labels"][:12],
                 class_names=names)  # fmt: skip
    fid = ("--real", tmp_path / "real.npz", "--inception", weights)
    model = run("evaluate", files.model, *classes, *MODEL, *fid, "--json", tmp_path / "a.json")
    assert model.code == 0, model.err
    disk = run("evaluate", "--images", drawn, *classes, *fid, "--json", tmp_path / "b.json")
    assert disk.code == 0, disk.err
    left, right = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for key in SAME:  # the file has the images by class: means add in another order
        value = right[key]
        same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert left[key] == same, key
    assert left["fidelity"]["fid"] == pytest.approx(right["fidelity"]["fid"], rel=1e-5)

    assert (left["model"], left["forget_class"]) == (files.model, "star")
    assert (left["forget_count"], left["keep_count"]) == (4, 8)
    found = left["fidelity"]
    assert (found["count"], found["real_count"], found["layer"]) == (8, 8, "64")
    assert found["weights_sha256"] != WEIGHTS_SHA256 and not found["weights_published"]
    assert found["real_source"] == f"{tmp_path / 'real.npz'}, without star"
    assert left["drawn"]["sampler"] == "one-step" and left["drawn"]["seed"] == 4
    assert len(left["network"]) == 64 and right["network"] == ""
    assert {"torch", "torch-fidelity", "torchvision"} <= set(left["versions"])
    for words in ("4 images of the forgotten class", "8 generated images", "8 real images",
                  "pth is not the file"):  # fmt: skip
        assert any(words in warning for warning in left["warnings"])
        assert any(line.startswith("note: ") and words in line for line in model.out.splitlines())
    assert f"FID, kept            {found['fid']:.3f} (8 generated, 8 real)" in model.out


def test_an_evaluation_goes_on_with_the_samples_that_it_has_kept(run, files, tmp_path):
    judged = ("evaluate", files.model, "--classifier", files.classifier, "--forget", "star", *MODEL)
    judged = (*judged, "--statistics", files.statistics)
    alone, kept, again = (tmp_path / f"{name}.json" for name in ("alone", "kept", "again"))
    assert run(*judged, "--json", alone).code == 0
    folder = tmp_path / "samples"
    assert run(*judged, "--samples", folder, "--json", kept).code == 0
    images = sorted(folder.glob("*/*.png"))
    assert len(images) == 12
    images[5].unlink()  # as if it had been stopped
    done = run(*judged, "--samples", folder, "--json", again)
    assert done.code == 0, done.err
    assert sorted(folder.glob("*/*.png")) == images
    first, *others = (json.loads(path.read_text()) for path in (alone, kept, again))
    for other in others:
        for key in (*SAME, "frechet", "forget_count", "keep_count"):
            assert other[key] == first[key], key
    other_seed = (*judged, "--seed", 5, "--samples", folder)
    refused = run(*other_seed)
    assert refused.code == 2 and "holds samples of another run" in refused.err
    assert run(*other_seed, "--force").code == 0
    on_disk = run("evaluate", "--images", folder, "--samples", folder)
    assert on_disk.code == 2 and "leave them out" in on_disk.err


def test_images_without_classes_have_a_fid_and_nothing_else(run, tmp_path, weights, few_features):
    generator = np.random.default_rng(0)
    for name in ("drawn", "real"):
        (tmp_path / name).mkdir()
        for index in range(4):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    folders = ("--images", tmp_path / "drawn", "--real", tmp_path / "real")
    done = run("evaluate", *folders, "--inception", weights, "--json", tmp_path / "out.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["fidelity"]["count"] == 4 and "forget_accuracy" not in found
    done = run("evaluate", *folders, "--inception", weights, "--forget", 0)
    assert done.code == 2 and "the images have no classes" in done.err


def test_an_erased_model_says_what_it_forgot(run, files, tmp_path):
    model = ModelFolder.load(files.model)
    erased = replace(model.with_network(model.network, "generator"), figures={"forget": "Star"})
    erased.save(tmp_path / "run" / "model")
    judge = tmp_path / "judge"
    shutil.copytree(files.classifier, judge)
    statistics = ClassStatistics.from_features(torch.randn(60, 64), torch.arange(60) % 3, 3)
    statistics.save(judge / "statistics.safetensors")
    out = tmp_path / "run" / "evaluate.json"
    judging = ("--classifier", judge, "--per-class", 2)
    done = run("evaluate", tmp_path / "run", *judging, "--json", out)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert (found["forget_class"], found["steps"], found["processes"]) == ("star", 1, 1)
    assert found["trained"] == {"kind": "generator", "forget": "Star"}
    assert found["frechet"] > 0  # against the statistics beside the classifier
    by_hand = pecker_fast.evaluate.judge(tmp_path / "run", classifier=judge, per_class=2)
    same = json.loads(json.dumps(by_hand.to_dict()))
    assert {**same, "machine": None} == {**found, "machine": None}
    both = run("evaluate", tmp_path / "run", *judging, "--classifier", files.classifier)
    assert both.code == 0 and "second judge" in both.out
    assert run("evaluate", tmp_path / "run", *judging, *judging[:2], *judging[:2]).code == 2

    done = run("sample", tmp_path / "run", "--out", tmp_path / "drawn", "--per-class", 2)
    assert done.code == 0, done.err
    disk = tmp_path / "disk.json"
    done = run("evaluate", "--images", tmp_path / "drawn", *judging[:2], "--json", disk)
    assert done.code == 0, done.err
    again = json.loads(disk.read_text())
    same = (*SAME, "forget", "frechet", "sampler", "steps", "seed")
    assert {key: again[key] for key in same} == {key: found[key] for key in same}
    assert again["drawn"]["model"]["weights"] == found["network"]


@pytest.mark.slow
def test_a_published_classifier_is_a_judge(run, tmp_path):
    """The file of train_classifier.py, under DataParallel, and the same network as a folder."""
    torch.manual_seed(0)
    judge = ResNetClassifier(3).eval()
    judge.save(tmp_path / "judge")
    torch.save(
        {f"module.{name}": value for name, value in judge.state_dict().items()},
        tmp_path / "cifar10_resnet34.pth",
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "drawn.npz", images=images, labels=np.array([0, 1, 2, 0]))
    found = []
    for name in ("cifar10_resnet34.pth", "judge"):
        out = tmp_path / f"{name}.json"
        judging = ("--classifier", tmp_path / name, "--forget", 0, "--json", out)
        done = run("evaluate", "--images", tmp_path / "drawn.npz", *judging)
        assert done.code == 0, done.err
        found.append(json.loads(out.read_text()))
    assert {key: found[0][key] for key in SAME} == {key: found[1][key] for key in SAME}
    assert found[0]["judge"].startswith("ResNetClassifier ")


@pytest.mark.slow
def test_several_processes_give_the_figures_of_one(run, files, tmp_path):
    arguments = ["evaluate", files.model, "--classifier", files.classifier, "--forget", "1",
                 "--per-class", "4", "--json"]  # fmt: skip
    assert run(*arguments, tmp_path / "one.json").code == 0
    codes, said, errors = run_commands(2, *arguments, tmp_path / "two.json")
    assert codes == (0, 0), errors
    assert "".join(said).count("forget accuracy") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert {key: one[key] for key in SAME} == {key: two[key] for key in SAME}
    assert one["network"] == two["network"]


def test_full_counts_with_the_published_weights_need_no_warning():
    full = judgement(replace(EVALUATION, forget_count=5000))
    assert full.warnings() == []
    for wrong in ({"count": 9_999}, {"real_count": 2_047}, {"weights_published": False}):
        assert len(replace(full, fidelity=replace(FIDELITY, **wrong)).warnings()) == 1
