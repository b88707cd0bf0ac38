"""--dry-run, --print-config, --json and --quiet, on every command that has them."""

import json
import re
import shutil

import pytest
import yaml
from markupsafe import escape

from pecker_fast.runs import dry_run

SLOW = pytest.mark.slow
SMALL = [
    "--forget", "star", "--override", "circle", "--density", "0.2",
    "--set", "batch_size=2", "--set", "saliency.batches=1", "--set", "saliency.batch_size=2",
    "--set", "generator.lr=1e-3", "--set", "generator.lambda_forget=1", "--iterations", "2",
]  # fmt: skip
CONCEPT = [
    "--recipe", "object", "--name", "cat", "--override", "dog", "--iterations", "2",
    "--set", "batch_size=2", "--set", "micro_batch=null", "--set", "saliency.batches=1",
    "--set", "saliency.batch_size=2", "--set", "text.max_prompts=4", "--no-previews",
]  # fmt: skip


# ---- --print-config


@pytest.fixture
def lines(files, pipeline, coloured):
    """Command lines, but for `--out`."""
    return {
        "erase": ["erase", files.model, *SMALL],
        "erase of a concept": ["erase", "--pipeline", pipeline, *CONCEPT],
        "method": ["erase", files.model, "--keep-steps", *SMALL[:4]],
        "distill": ["distill", files.model, "--iterations", "3", "--set", "batch_size=2"],
        "mask": ["mask", files.model, *SMALL[:10]],
        "train-teacher": ["train-teacher", "--config", "small_teacher", *coloured.data,
                          "--iterations", "7"],
    }  # fmt: skip


COMMANDS = ["erase", "erase of a concept", "method", "distill", "mask", "train-teacher"]


@pytest.mark.parametrize("name", COMMANDS)
def test_printed_settings_are_read_back(
    run, files, pipeline, coloured, lines, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    words = [*lines[name], "--out", "run"]
    printed = run(*words, "--print-config")
    assert printed.code == 0, printed.err
    assert list(tmp_path.iterdir()) == [] and printed.err == ""
    settings = yaml.safe_load(printed.out)
    assert (settings["batch_size"] > 0 and "mask" in settings) or name == "train-teacher"
    (tmp_path / "mine.yaml").write_text(printed.out)
    model = ["--pipeline", pipeline] if "concept" in name else [files.model]
    if name == "train-teacher":
        model = coloured.data[2:]
    again = run(words[0], *model, "--config", "mine.yaml", "--out", "run", "--print-config")
    assert again.code == 0, again.err
    assert again.out == printed.out


# ---- --json, --quiet


def test_a_run_in_json_and_nothing_else(run, files, tmp_path):
    judged = ["--classifier", files.classifier, "--per-class", "4", "--teacher-steps", "2"]
    words = ["erase", files.model, *SMALL, *judged, "--out", tmp_path / "run"]
    done = run(*words, "--json", "--quiet")
    assert done.code == 0 and done.err == "", done.err
    found = json.loads(done.out)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {key: found[key] for key in report} == report
    assert found["paths"]["model"] == str(tmp_path / "run" / "model")
    assert found["paths"]["report"] == str(tmp_path / "run" / "report.html")
    for seed in ("1", "0"):  # the report has the latest
        again = run("attack", tmp_path / "run", "--classifier", files.classifier, "--images", "10",
                    "--seed", seed, "--json", "--quiet")  # fmt: skip
        assert again.code == 0 and again.err == "", again.err
    attacked = json.loads((tmp_path / "run" / "attack.json").read_text())
    assert json.loads(again.out) == attacked
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == {
        **report, "attack": attacked,
    }  # fmt: skip
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("Asked in other ways") == page.count("<details>") == 1
    assert page.index(attacked["headline"][:20]) < page.index("<table")
    assert all(str(escape(asked["way"])) in page for asked in attacked["asked"])
    assert page.startswith("<!doctype html>") and "&lt;" not in page


def test_first_stages_masks_teachers_and_judges_in_json(run, files, coloured, tmp_path):
    small = [*coloured.data, "--iterations", "1", "--set"]
    commands = {
        "distill": [files.model, "--iterations", "1", "--set", "batch_size=2"],
        "mask": [files.model, *SMALL[:10]],
        "train-teacher": ["--config", "small_teacher", *small, "batch_size=2", "--set",
                          "network.channels=8", "--set", "network.channel_mult=[1]", "--set",
                          "network.attention_levels=[]"],
        "train-classifier": ["--arch", "small", *small, "batch_size=2"],
    }  # fmt: skip
    for name, options in commands.items():
        out = tmp_path / (f"{name}.safetensors" if name == "mask" else name)
        done = run(name, *options, "--out", out, "--json", "--quiet")
        assert done.code == 0 and done.err == "", (name, done.err)
        assert str(out) in json.loads(done.out).values(), name


def test_figures_of_an_evaluation_on_stdout(run, files, tmp_path):
    words = ["evaluate", files.model, "--classifier", files.classifier, "--per-class", "2",
             "--steps", "1", "--forget", "star", "--quiet", "--json"]  # fmt: skip
    done, written = run(*words, "-"), run(*words, tmp_path / "found.json")
    assert (done.code, done.err, written.code) == (0, "", 0)
    assert json.loads(done.out) == json.loads((tmp_path / "found.json").read_text())
    assert not written.out.startswith("{")


def test_errors_are_said_all_the_same(run, refused, files, tmp_path):
    words = ["erase", files.model, "--out", tmp_path / "run", "--quiet", "--json"]
    refused(run(*words, "--forget", "wizard", "--override", "star"), "wizard")
    done = run(*words, *SMALL)  # and the next command is as it was asked for
    assert done.code == 0 and done.err == ""
    assert "distill: 2 of 2" in run("erase", files.model, *SMALL, "--out", tmp_path / "b").err


# ---- --dry-run


@pytest.mark.parametrize(
    "name",
    [
        "erase",
        "train-teacher",
        *(pytest.param(n, marks=SLOW) for n in ("erase of a concept", "method", "distill")),
    ],
)
def test_a_dry_run_says_what_a_run_takes(run, files, lines, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*lines[name], "--out", "run", "--dry-run"]
    if name == "erase of a concept":
        words += ["--set", "mask.kind=random"]
    if name == "method":
        words += ["--set", "steps=2", "--set", "batch_size=2", "--set", "saliency.batch_size=2"]
    if name == "train-teacher":  # more iterations are tried than it has, and nothing is logged
        words += ["--set", "batch_size=2", "--set", "logging.tensorboard=true"]
        words += ["--iterations", "1", "--set", "warmup=1"]
    before = {file: file.stat().st_mtime_ns for file in files.root.rglob("*")}
    done = run(*words, "--json", "--quiet")
    assert done.code == 0 and done.err == "", done.err
    assert list(tmp_path.iterdir()) == []
    assert {file: file.stat().st_mtime_ns for file in files.root.rglob("*")} == before
    found = json.loads(done.out)
    peak = found["peak"]
    assert peak["size"] == sum(peak["parts"].values()) > 0 and peak["parts"]["weights"] > 0
    assert 0 < found["iteration_s"] and found["run_s"] >= found["iterations"] * found["iteration_s"]
    assert (found["finding_s"] > 0) == (name in ("erase", "method"))
    assert 0 < found["disk_bytes"] < found["free_disk_bytes"]
    assert found["process_bytes"] > peak["size"]  # tiny networks
    assert (found["mask"] is None) == (name == "train-teacher")


def test_a_teacher_that_does_not_fit_is_told_its_batch(
    run, refused, coloured, tmp_path, monkeypatch
):
    def words(batch):
        return [
            "train-teacher", "--config", "small_teacher", *coloured.data,
            "--out", tmp_path / "run", "--dry-run", "--set", f"batch_size={batch}",
        ]  # fmt: skip

    monkeypatch.setattr(dry_run, "free_bytes", lambda: 256 << 20)
    done = run(*words(10**4))
    refused(done, "more memory on cpu (at an iteration)", "--set precision=autocast")
    said = re.search(r"--set batch_size=(\d+) takes (\d+) MiB$", done.err.strip())
    assert int(said[1]) > 1 and 0.4 * 256 < int(said[2]) <= 256, done.err
    assert list(tmp_path.iterdir()) == []
    written = run(*words(4))
    assert "mask" not in written.out and "judging" not in written.out and "images" in written.out


@SLOW
def test_a_disk_that_is_full_is_refused(run, refused, files, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    done = run("erase", files.model, *SMALL, "--out", tmp_path / "run", "--dry-run")
    refused(done, str(tmp_path), "--out")


@pytest.mark.parametrize("option", ["--dry-run", "--print-config"])
def test_one_process_is_asked(run, files, tmp_path, monkeypatch, option):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = run("erase", files.model, *SMALL, "--out", tmp_path / "run", option)
    assert done.code == 2 and option in done.err and "torchrun" in done.err
