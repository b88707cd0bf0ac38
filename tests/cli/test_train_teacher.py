"""`pecker-fast train-teacher --config`: from image files to a folder that the others take."""

import pytest
import torch
import yaml
from methods import training_jobs as jobs
from safetensors.torch import load_file

from pecker_fast.methods.training_config import load_teacher_config
from pecker_fast.models import ModelFolder

NAMES = ("circle", "square", "star")
TINY = {
    **jobs.TINY,
    "dataset": "images",
    "iterations": 4,
    "network": {**jobs.TINY["network"], "dropout": 0.2},
}


@pytest.fixture
def train(run, coloured, tmp_path):
    """Run the command with the tiny recipe; later arguments win over earlier ones."""

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def train(*arguments, out=tmp_path / "run"):
        return run(
            "train-teacher", "--config", tmp_path / "tiny.yaml", *coloured.data, "--out", out,
            "--threads", 1, *arguments,
        )  # fmt: skip

    return train


def weights(out):
    return load_file(out / "model/unet/diffusion_pytorch_model.safetensors")


def test_the_folder_is_a_model_of_the_averages(train, tmp_path, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)  # of a test of several processes before
    done = train()
    assert done.code == 0 and "teacher: 4 of 4" in done.err, done.err
    out = tmp_path / "run"
    assert f"teacher       {out / 'model'}" in done.out
    model = ModelFolder.load(out / "model")
    assert (model.class_names, model.image_shape, model.kind) == (NAMES, (3, 8, 8), "teacher")
    assert model.figures["training"]["iterations"] == 4
    assert model.figures["training"]["images"].endswith("60 training images, 8x8")
    averages = torch.load(out / "checkpoint-00000004.pt", weights_only=True)["average"]
    for name, value in weights(out).items():
        assert torch.equal(value, averages[name])
    config = load_teacher_config(out / "config.yaml")
    assert (config.iterations, config.dataset) == (4, "images")


def test_a_finished_run_can_be_made_longer_or_anew(train, refused, tmp_path):
    assert train().code == 0
    before = weights(tmp_path / "run")
    longer = train("--iterations", 6)
    assert (longer.code, "resuming at iteration 4 of 6" in longer.err) == (0, True)
    assert sorted(file.name for file in (tmp_path / "run").glob("*.pt")) == [
        "checkpoint-00000004.pt",
        "checkpoint-00000006.pt",
    ]
    refused(train(), "6 iterations", "4")
    anew = train("--force")
    assert (anew.code, "resuming" in anew.err) == (0, False)
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_a_class_by_name_then_by_number(train, refused, tmp_path):
    assert train("--without", "Square").code == 0
    figures = ModelFolder.load(tmp_path / "run/model").figures["training"]
    assert "40 training images" not in figures["images"]  # what the files hold, then what is left
    assert figures["images"].endswith("without 'square'")
    assert figures["config"]["without"] == 1
    assert train("--without", "1", "--iterations", 5).code == 0
    refused(train("--without", "star"), "other images")
