"""Two-stage forgetting by the command line: stage 1 keeps everything, stage 2 starts from it."""

import pytest
import torch

from pecker_fast.distill import RunDirectory
from pecker_fast.models import ModelFolder

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


def test_bad_starts_are_refused(files, stage_1, tmp_path, run):
    (tmp_path / "run.lock").touch()
    for option, reason in (
        (["--generator", tmp_path], "has not made a model yet"),
        (["--pseudo-score", tmp_path], "has no checkpoint"),
        (["--generator", tmp_path / "nowhere"], "is missing"),
    ):
        done = run("erase", files.model, *STAGE_2, *option, "--out", tmp_path / "out")
        assert done.code == 2
        assert reason in done.err
        assert not (tmp_path / "out").exists()
    done = run(
        "erase", files.model, "--config", "cifar10_stage1", "--out", tmp_path / "out",
        "--classifier", files.classifier,
    )  # fmt: skip
    assert done.code == 2
    assert "nothing is forgotten" in done.err
