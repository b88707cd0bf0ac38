"""`pecker-fast erase` end to end on a tiny model: outputs, resumption, repetition."""

import json
import shutil

import pytest
import torch

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.runs.directory import RunDirectory

SMALL = [
    "--forget", "star", "--override", "circle", "--density", "0.2",
    "--set", "batch_size=2", "--set", "saliency.batches=1", "--set", "saliency.batch_size=2",
    "--set", "generator.lr=1e-3", "--set", "generator.lambda_forget=1",
]  # fmt: skip
KEYS = {
    "forget_accuracy_before", "keep_accuracy_teacher", "forget_accuracy_after",
    "keep_accuracy_after", "frechet_teacher", "frechet_after", "frozen_parameters",
    "frozen_changed", "density", "iterations", "wall_s", "backend", "seed",
}  # fmt: skip


def judge(files):
    return [
        "--classifier", files.classifier, "--statistics", files.statistics,
        "--per-class", "4", "--teacher-steps", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A finished run with a report; read-only."""
    from pecker_fast import cli

    out = tmp_path_factory.mktemp("erase") / "run"
    code = cli.main(
        ["erase", files.model, "--out", str(out), *SMALL, "--iterations", "3", *judge(files)]
    )
    assert code == 0
    return out


def test_report_json(finished):
    report = json.loads((finished / "report.json").read_text())
    assert report.keys() >= KEYS
    assert report["frozen_changed"] == 0
    total = report["frozen_parameters"] + report["salient_parameters"]
    assert report["density"] == pytest.approx(0.2, abs=1e-3)
    assert report["salient_parameters"] == round(0.2 * total)
    assert report["salient_changed"] > 0
    assert (report["iterations"], report["seed"]) == (3, 0)
    assert (report["forget"], report["override"]) == ("star", "circle")
    assert [point["iteration"] for point in report["curve"]] == [0, 1, 2, 3]
    seconds = [point["wall_s"] for point in report["curve"]]
    assert seconds[0] == 0 and seconds == sorted(seconds) and seconds[-1] <= report["training_s"]
    assert report["training_s"] <= report["stage_s"]["erase"] + 0.01
    assert report["wall_s"] >= sum(report["stage_s"].values()) - 0.1
    assert report["after"]["steps"] == 1 and report["teacher"]["steps"] == 2
    assert report["teacher_figures"] == "measured"


def test_frozen_parameters_against_the_model_on_disk(files, finished):
    before = dict(ModelFolder.load(files.model).network.named_parameters())
    after = dict(ModelFolder.load(finished / "model").network.named_parameters())
    mask = SaliencyMask.load(finished / "mask.safetensors").to_dense()
    moved = 0
    for name, old in before.items():
        assert torch.equal(old[~mask[name]], after[name][~mask[name]]), name
        moved += int((old != after[name]).sum())
    assert moved == json.loads((finished / "report.json").read_text())["salient_changed"]


# ---- the proof


def proof(out):
    return json.loads((out / "frozen.json").read_text())


def move_a_frozen_entry(out):
    """Change a bit of the newest checkpoint outside the mask, under a digest that says it is right.

    Returns the parameter that it is in.
    """
    dense = SaliencyMask.load(out / "mask.safetensors").to_dense()
    name = next(name for name, salient in dense.items() if not salient.all())
    place = tuple((~dense[name]).nonzero()[0].tolist())
    with RunDirectory(out) as directory:
        state = directory.load()
        weight = state["networks"]["generator"][name]
        weight[place] = torch.nextafter(weight[place], torch.tensor(9.0))
        directory.save(state["iteration"], state)
    return name


def test_the_proof_is_written_and_printed_with_and_without_a_report(run, files, finished, tmp_path):
    report = json.loads((finished / "report.json").read_text())
    kept = proof(finished)
    assert kept["frozen_changed"] == 0 and kept["frozen_changed_in"] == {}
    assert kept == {key: report[key] for key in kept}
    done = run("erase", files.model, "--out", tmp_path / "run", *SMALL, "--iterations", 3)
    assert done.code == 0, done.err
    assert proof(tmp_path / "run") == kept
    frozen, salient = kept["frozen_parameters"], kept["salient_parameters"]
    said = f"{frozen:,} of {frozen + salient:,} parameters were frozen; 0 of them changed"
    assert said in done.out


def test_a_frozen_entry_that_changed_is_named_and_ends_with_code_3(run, files, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    name = move_a_frozen_entry(out)
    done = run("erase", files.model, "--out", out, *SMALL, "--iterations", 3, *judge(files))
    assert done.code == 3
    assert "; 1 of them changed" in done.out
    assert done.err.splitlines()[-1].startswith(f"pecker-fast: {out}: 1 frozen entry of {name!r}")
    kept = proof(out)
    assert (kept["frozen_changed"], kept["frozen_changed_in"]) == (1, {name: 1})
    assert json.loads((out / "report.json").read_text())["frozen_changed"] == 1


def test_the_erased_model_is_a_generator(run, finished, tmp_path):
    model = ModelFolder.load(finished / "model")
    assert model.kind == "generator" and model.figures["t_init"] == 440
    assert model.class_names == ("circle", "square", "star")
    # Without --steps, an erased model is sampled in one step.
    done = run("sample", finished / "model", "--png", tmp_path / "x.png", "--per-class", 1)
    assert done.code == 0, done.err


def test_the_same_command_again_changes_no_weight(run, files, finished, tmp_path):
    weights = (finished / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    arguments = ["--out", finished, *SMALL, "--iterations", "3", *judge(files)]
    done = run("erase", files.model, *arguments)
    assert done.code == 0, done.err
    assert "resuming at iteration 3 of 3" in done.err
    assert (finished / "model/unet/diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_force_starts_anew(run, files, tmp_path):
    out = tmp_path / "run"
    assert run("erase", files.model, "--out", out, *SMALL, "--iterations", 2).code == 0
    (out / "notes.txt").write_text("mine")
    other = ["--seed", 5, "--iterations", 1]
    done = run("erase", files.model, "--out", out, *SMALL, *other)
    assert done.code == 2 and "seed" in done.err
    assert run("erase", files.model, "--out", out, *SMALL, *other, "--force").code == 0
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-00000001.pt"]
    assert (out / "notes.txt").read_text() == "mine"


def test_ctrl_c_saves_and_the_same_command_goes_on(
    run, files, finished, tmp_path, ctrl_c_at_a_checkpoint
):
    command = ["erase", files.model, "--out", tmp_path / "run", *SMALL, "--iterations", 3]
    command += ["--set", "logging.checkpoint_every=1"]
    with ctrl_c_at_a_checkpoint():
        done = run(*command)
    assert done.code == 130 and "start the same command again" in done.err
    done = run(*command)
    assert done.code == 0 and "resuming at iteration" in done.err
    name = "model/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
