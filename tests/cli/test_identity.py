"""What a run depends on is noticed when it changes between two starts."""

import json
import shutil

import pytest

from pecker_fast.distill.config import load_config
from pecker_fast.distill.objective import Objective
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.patches.patch import network_digest

BEGIN = [
    "--forget", "star", "--override", "circle", "--iterations", "2", "--set", "batch_size=2",
    "--set", "saliency.batches=1", "--set", "saliency.batch_size=2",
]  # fmt: skip


def rewrite(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def swapped_names(model):
    rewrite(model / "pecker_fast.json", class_names=["square", "circle", "star"])


def other_betas(model):
    rewrite(model / "scheduler/scheduler_config.json", beta_end=0.03)


@pytest.mark.parametrize(
    ("change", "named"),
    [(swapped_names, "other class names"), (other_betas, "another noise schedule")],
)
def test_a_changed_model_is_not_taken_up(run, refused, files, tmp_path, change, named):
    model = tmp_path / "model"
    shutil.copytree(files.model, model)
    begin = ["erase", model, "--out", tmp_path / "run", *BEGIN]
    assert run(*begin).code == 0
    change(model)
    refused(run(*begin), tmp_path / "run", named)


def test_a_result_says_what_it_was_made_of(run, files, tmp_path):
    out = tmp_path / "run"
    assert run("erase", files.model, "--out", out, *BEGIN).code == 0
    proof = json.loads((out / "frozen.json").read_text())
    digests = proof["digests"]
    assert digests["original"] == network_digest(ModelFolder.load(files.model).network)
    made = ModelFolder.load(out / "model")
    assert digests["erased"] == network_digest(made.network)
    assert digests["mask"] == made.figures["mask_digest"]
    assert made.figures["frozen"] == proof


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("class_names", ["circle", "star", "square"], "class names"),
        ("patch_size", 2, "patch size"),
        ("class_names", ["circle", "square"], "class names"),
    ],
)
def test_the_description_of_a_model(files, tmp_path, key, value, named):
    model = ModelFolder.load(files.model)
    config = load_config(None, {"forget": 0, "override": 1})
    before = Objective.from_model(model, config).identity()
    object.__setattr__(model, key, tuple(value) if isinstance(value, list) else value)
    after = Objective.from_model(model, config).identity()
    assert {name for name in before if before[name] != after[name]} == {named}


def test_prompts_and_text_encoder(tmp_path):
    from tiny_pipeline import save_tiny_pipeline

    save_tiny_pipeline(tmp_path / "pipe", length=48)
    pipeline = PipelineFolder.load(tmp_path / "pipe")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na hen\n")
    config = load_config(
        "object", {"text.remain": str(prompts)}, names=["cat"], name_overrides=["dog"]
    )

    def identity():
        return Objective.from_pipeline(pipeline, config).identity()

    before = identity()
    assert identity() == before
    prompts.write_text("a fox\na cow\n")
    changed = identity()
    assert {name for name in before if before[name] != changed[name]} == {"prompts"}
    next(pipeline.texts.encoders[0].parameters()).data.view(-1)[0] += 1
    again = identity()
    assert {name for name in again if again[name] != changed[name]} == {"text encoder"}
