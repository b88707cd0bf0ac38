"""Two-stage forgetting by the command line: stage 1 keeps everything, stage 2 starts from it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from pecker_fast.distill import RunDirectory
from pecker_fast.erasure.starts import load_start
from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder
from pecker_fast.runs.digest import fingerprint

QUICK = ["--set", "batch_size=2", "--set", "generator.lr=1e-3", "--iterations", "2"]
STAGE_2 = ["--forget", "star", "--override", "circle", "--mask", "random", *QUICK]


@pytest.fixture(scope="module")
def stage_1(files, tmp_path_factory):
    """A finished first stage; read-only."""
    from pecker_fast import cli

    out = tmp_path_factory.mktemp("stages") / "stage1"
    assert (
        cli.main(["erase", files.model, "--config", "cifar10_stage1", "--out", str(out), *QUICK])
        == 0
    )
    return out


def pseudo_score_of(where):
    with RunDirectory(where) as directory:
        return directory.load()["networks"]["pseudo_score"]


def test_stage_1_forgets_nothing(stage_1):
    assert "forget" not in ModelFolder.load(stage_1 / "model").figures
    assert not (stage_1 / "report.json").exists()


def test_stage_2_starts_from_stage_1_and_keeps_the_teacher(files, stage_1, tmp_path, run):
    out = tmp_path / "run"
    start = ["--generator", stage_1, "--pseudo-score", stage_1]
    frozen = ["--set", "generator.lr=0", "--set", "pseudo_score.lr=0"]
    done = run(
        "erase", files.model, "--config", "cifar10_stage2", *STAGE_2, *start, *frozen, "--out", out
    )
    assert done.code == 0, done.err
    before = ModelFolder.load(stage_1 / "model").unet.state_dict()
    for name, value in ModelFolder.load(out / "model").unet.state_dict().items():
        assert torch.equal(value, before[name])
    psi = pseudo_score_of(stage_1)
    for name, value in pseudo_score_of(out).items():
        assert torch.equal(value, psi[name])
    teacher = ModelFolder.load(files.model).unet.state_dict()
    assert any(not torch.equal(value, teacher[name]) for name, value in psi.items())


def test_a_pseudo_score_that_shared_its_weights(files, stage_1, tmp_path, run):
    """Of a run that saved salient values only: they are laid over the teacher's."""
    first, second = tmp_path / "first", tmp_path / "second"
    both = ["--set", "mask.apply=both", "--set", "generator.lambda_forget=1"]
    assert run("erase", files.model, *STAGE_2, *both, "--out", first).code == 0
    done = run(
        "erase", files.model, *STAGE_2, "--pseudo-score", first, "--set", "pseudo_score.lr=0",
        "--out", second,
    )  # fmt: skip
    assert done.code == 0, done.err
    teacher = ModelFolder.load(files.model).unet
    with RunDirectory(first) as directory:
        saved = directory.load()
    for name, value in pseudo_score_of(second).items():
        expected = teacher.state_dict()[name].clone()
        if name in saved["networks"]["pseudo_score"]:
            indices = saved["ever_salient"]["indices"][name].long()
            expected.view(-1)[indices] = saved["networks"]["pseudo_score"][name]
        assert torch.equal(value, expected)


def run_of_another_kind(folder, model, figures):
    """A finished run whose checkpoint has no networks of a distillation, as `train-teacher`'s."""
    with RunDirectory(folder) as directory:
        directory.save(4, {"network": {}})
    replace(ModelFolder.load(model), figures=figures).save(folder / "model")
    return folder


@pytest.mark.parametrize(
    ("figures", "kind"),
    [
        ({"training": {"iterations": 4, "seconds": 1.5}}, "teacher"),
        ({"method": "fine_tune", "iterations": 4, "training": {"seconds": 1.5}}, "fine_tune"),
    ],
)
def test_a_pseudo_score_from_a_run_that_made_a_teacher(files, tmp_path, run, figures, kind):
    """It has no pseudo-score network; one that starts at its model is what a teacher gives."""
    start = run_of_another_kind(tmp_path / "start", files.model, figures)
    out = tmp_path / "run"
    still = ["--set", "pseudo_score.lr=0"]
    done = run("erase", files.model, *STAGE_2, "--pseudo-score", start, *still, "--out", out)
    assert done.code == 0, done.err
    teacher = ModelFolder.load(files.model).unet.state_dict()
    for name, value in pseudo_score_of(out).items():
        assert torch.equal(value, teacher[name])
    (facts,) = ModelFolder.load(out / "model").figures["start"].values()
    assert (facts["kind"], facts["iterations"], facts["seconds"]) == (kind, 4, 1.5)


def test_one_of_several_processes_reads_the_run(files, stage_1):
    """The others could not: a run's directory is locked by one process at a time."""
    like = ModelFolder.load(files.model).unet
    told = []

    class First:
        def first(self, work):
            told.append(work())
            return told[0]

    class Other:
        def first(self, work):
            return told[0]

    ours = load_start(stage_1, "pseudo_score", like, ranks=First())
    with RunDirectory(stage_1):
        with pytest.raises(PeckerError, match="in use by process"):
            load_start(stage_1, "pseudo_score", like)
        theirs = load_start(stage_1, "pseudo_score", like, ranks=Other())
    assert theirs.facts == ours.facts


def test_the_model_says_what_it_started_from(files, stage_1, tmp_path, run):
    out = tmp_path / "run"
    start = ["--generator", stage_1 / "model", "--pseudo-score", stage_1]
    done = run("erase", files.model, "--config", "cifar10_stage2", *STAGE_2, *start, "--out", out)
    assert done.code == 0, done.err
    first = ModelFolder.load(stage_1 / "model")
    trained = first.figures["training"]
    figures = ModelFolder.load(out / "model").figures
    assert figures["start"] == json.loads((out / "start.json").read_text())["start"]
    generator, psi = figures["start"]["generator"], figures["start"]["pseudo_score"]
    common = {
        "iterations": 2, "seconds": trained["seconds"], "processes": 1,
        "device_name": trained["machine"]["device_name"],
    }  # fmt: skip
    assert generator == {
        "path": str(stage_1 / "model"), "kind": "generator", **common,
        "fingerprint": fingerprint(first.unet),
    }  # fmt: skip
    network = ModelFolder.load(files.model).unet
    network.load_state_dict(pseudo_score_of(stage_1))
    assert psi == {
        "path": str(stage_1), "kind": "pseudo_score", **common,
        "fingerprint": fingerprint(network),
    }  # fmt: skip
    assert "start" not in first.figures

    # A third stage tells of the first, and names only the network that was given.
    third = tmp_path / "third"
    done = run("erase", files.model, *STAGE_2, "--generator", out, "--out", third)
    assert done.code == 0, done.err
    (facts,) = ModelFolder.load(third / "model").figures["start"].values()
    assert facts["start"] == figures["start"]


def test_the_seconds_of_finding_the_mask(files, refused, tmp_path, run):
    """They are those of the first start, and there are none where no mask was searched for."""
    out = tmp_path / "run"
    saliency = ["--forget", "star", "--override", "circle", "--mask", "saliency", *QUICK]
    saliency += ["--set", "saliency.batches=1", "--set", "saliency.batch_size=2"]
    assert run("erase", files.model, *saliency, "--out", out).code == 0
    training = ModelFolder.load(out / "model").figures["training"]
    assert training["mask_seconds"] > 0
    begun = json.loads((out / "start.json").read_text())
    facts = {"start": {}, "mask_seconds": training["mask_seconds"]}
    assert begun == {**facts, "digest": begun["digest"]}
    assert run("erase", files.model, *saliency, "--out", out).code == 0  # takes the run up
    again = ModelFolder.load(out / "model").figures["training"]
    assert again["mask_seconds"] == training["mask_seconds"]
    (out / "start.json").write_text(json.dumps({**begun, "mask_seconds": 1e6}))
    refused(run("erase", files.model, *saliency, "--out", out), out / "start.json", "damaged")
    (out / "start.json").write_text("[]")
    refused(run("erase", files.model, *saliency, "--out", out), out / "start.json")

    assert run("erase", files.model, *STAGE_2, "--out", out, "--force").code == 0
    assert "mask_seconds" not in ModelFolder.load(out / "model").figures["training"]


def unfinished(folder, **files):
    folder.mkdir()
    for name, text in {"run.lock": "", **files}.items():
        (folder / name).write_text(text)
    return folder


def test_bad_starts_are_refused(files, refused, tmp_path, run):
    empty = unfinished(tmp_path / "empty")
    judge = unfinished(tmp_path / "judge", **{"config.yaml": "arch: small\n"})
    finished = tmp_path / "finished"
    shutil.copytree(files.classifier, finished)
    (finished / "run.lock").touch()
    both = ("--generator", "--pseudo-score")
    cases = [(option, path) for option in both for path in (files.classifier, finished, judge)]
    for option, path in (*cases, *((option, empty) for option in both), ("--generator", "nowhere")):
        done = run("erase", files.model, *STAGE_2, option, path, "--out", tmp_path / "out")
        refused(done, path, *([option] if (option, path) in cases else []))
        assert not (tmp_path / "out").exists()


def test_where_nothing_is_forgotten_nothing_is_judged(files, refused, tmp_path, run):
    judged = ["--out", tmp_path / "out", "--classifier", files.classifier]
    refused(run("erase", files.model, "--config", "cifar10_stage1", *judged), "--classifier")
