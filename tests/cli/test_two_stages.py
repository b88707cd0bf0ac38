"""`pecker-fast distill`, `erase --from` and `until`: a one-step model, then what it forgets."""

import json

import pytest
import torch

from pecker_fast.models import ModelFolder
from pecker_fast.runs.digest import fingerprint

SMALL = [
    "--forget", "star", "--override", "circle", "--density", "0.2",
    "--set", "batch_size=2", "--set", "saliency.batches=1", "--set", "saliency.batch_size=2",
    "--set", "generator.lr=1e-3", "--set", "generator.lambda_forget=1",
]  # fmt: skip
FIRST = ["--set", "batch_size=2", "--set", "generator.lr=1e-3", "--set", "generator.every_step=1"]


@pytest.fixture(scope="module")
def first_stage(files, tmp_path_factory):
    from pecker_fast import cli

    out = tmp_path_factory.mktemp("distill") / "one-step"
    assert cli.main(["distill", files.model, "--out", str(out), *FIRST, "--iterations", "2"]) == 0
    return out


def test_a_first_stage_holds_both_networks(files, first_stage):
    generator = ModelFolder.load(first_stage / "model")
    pseudo_score = ModelFolder.load(first_stage / "pseudo_score")
    assert (generator.kind, pseudo_score.figures["method"]) == ("generator", "pseudo_score")
    made_from = fingerprint(ModelFolder.load(files.model).unet)
    assert len({made_from, fingerprint(generator.unet), fingerprint(pseudo_score.unet)}) == 3
    assert "forget" not in generator.figures


def test_an_erasure_starts_where_the_first_stage_ended(run, files, first_stage, tmp_path):
    options = ["--from", first_stage, "--set", "saliency.kind=retain_aware", "--iterations", "1"]
    ended = run("erase", files.model, *SMALL, *options, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    start = json.loads((tmp_path / "run" / "start.json").read_text())["start"]
    for role, folder in (("generator", "model"), ("pseudo_score", "pseudo_score")):
        network = ModelFolder.load(first_stage / folder).unet
        assert start[role]["fingerprint"] == fingerprint(network)
        assert start[role]["kind"] == role
    assert json.loads((tmp_path / "run" / "frozen.json").read_text())["frozen_changed"] == 0


def test_a_first_stage_of_another_model_is_refused(run, refused, files, first_stage, tmp_path):
    another = ModelFolder.load(files.model)
    with torch.no_grad():
        next(another.unet.parameters())[0] += 1
    another.save(tmp_path / "another")
    options = [*SMALL, "--from", first_stage, "--iterations", "1", "--out", tmp_path / "run"]
    refused(run("erase", tmp_path / "another", *options), first_stage, "another model", "distill")
    assert not (tmp_path / "run").exists()


def test_a_saliency_that_needs_a_first_stage(run, refused, files, tmp_path):
    options = [*SMALL, "--set", "saliency.kind=retain_aware", "--out", tmp_path / "run"]
    refused(run("erase", files.model, *options), "retain_aware", "--from")


def test_a_run_is_over_when_the_class_has_gone(run, files, tmp_path):
    """Here the condition holds at once; the same command again trains no further."""
    until = "until={forget: 0.99, keep_drop: 0.99, every: 2, images: 4}"
    judge = ["--classifier", files.classifier, "--per-class", "4", "--teacher-steps", "2"]
    command = ["erase", files.model, *SMALL, *judge, "--set", until, "--iterations", "20"]
    out = tmp_path / "run"
    for _ in range(2):
        ended = run(*command, "--out", out)
        assert ended.code == 0 and "over at iteration 2 of 20" in ended.err, ended.err
    report = json.loads((out / "report.json").read_text())
    assert report["iterations"] == 2
    assert [point["iteration"] for point in report["curve"]] == [0, 2]


def test_until_needs_a_judge(run, refused, files, tmp_path):
    options = [*SMALL, "--set", "until={}", "--out", tmp_path / "run"]
    refused(run("erase", files.model, *options), "until", "--classifier")
