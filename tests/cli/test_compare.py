"""`compare`: real runs, an original model's figures, and where the page may go."""

import csv
import json
from dataclasses import replace

import pytest
from run_folders import EVALUATION, judgement, pecker, write_json, write_run

SMALL = ("batch_size=2", "saliency.batches=1", "saliency.batch_size=2")


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / name, pecker()) for name in ("one", "two")]


@pytest.mark.slow
def test_an_erasure_and_its_original_side_by_side(run, files, tmp_path):
    judged = ("--classifier", files.classifier, "--statistics", files.statistics, "--per-class", 4)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    done = run(
        "erase", files.model, "--out", tmp_path / "pecker", "--forget", "star", "--override",
        "circle", "--iterations", 2, "--teacher-steps", 2, *judged, *settings,
    )  # fmt: skip
    assert done.code == 0, done.err
    original = ("evaluate", files.model, *judged, "--forget", "star", "--steps", 2)
    done = run(*original, "--json", tmp_path / "original.json")
    assert done.code == 0, done.err
    out = tmp_path / "comparison"
    done = run("compare", tmp_path / "pecker", tmp_path / "original.json", "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-3:] == [
        str(out / name) for name in ("comparison.html", "comparison.csv", "curves.csv")
    ]
    with open(out / "comparison.csv") as file:
        mine, other = csv.DictReader(file)
    report = json.loads((tmp_path / "pecker" / "report.json").read_text())
    assert (mine["method"], mine["forget"]) == ("PECKER", "star")
    assert float(mine["unlearning_accuracy"]) == report["after"]["unlearning_accuracy"]
    assert float(mine["wall_s"]) == report["training_s"] and mine["iterations"] == "2"
    assert mine["Fréchet distance"] == other["Fréchet distance"] != ""
    with open(out / "curves.csv") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_what_lies_there_is_replaced_only_with_force(run, runs, tmp_path):
    out = tmp_path / "deep" / "out"
    assert run("compare", *runs, "--out", out).code == 0
    again = run("compare", *runs, "--out", out)
    assert again.code == 2 and "comparison.html: exists; add --force" in again.err
    assert run("compare", runs[0], "--out", out, "--force").code == 0
    assert "1 run" in (out / "comparison.html").read_text()
    done = run("compare", *runs, "--out", runs[0] / "config.yaml")
    assert done.code == 2 and "is a file; give --out the name of a folder" in done.err


def test_nothing_is_written_where_runs_cannot_be_compared(run, runs, tmp_path):
    values = judgement(replace(EVALUATION, forget=2), forget=2).to_dict()
    for paths in ((runs[0], write_json(tmp_path / "bird.json", values)), (tmp_path / "none",), ()):
        done = run("compare", *paths, "--out", tmp_path / "out")
        assert done.code == 2 and not (tmp_path / "out").exists()
