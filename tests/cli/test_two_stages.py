"""`pecker-fast distill`, `erase --from` and `until`: a one-step model, then what it forgets."""

import json

import pytest
import torch

from pecker_fast.distill import load_config
from pecker_fast.erasure.concepts import Concept, Showing
from pecker_fast.erasure.prompt_judges import PromptJudge
from pecker_fast.erasure.run import Site, carry_out
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.classifier_files import CARD_NAME
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.methods.config import load_baseline_config
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder, load_unet
from pecker_fast.runs.digest import fingerprint

CPU = torch.device("cpu")
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
    made_from = fingerprint(ModelFolder.load(files.model).network)
    assert len({made_from, fingerprint(generator.network), fingerprint(pseudo_score.network)}) == 3
    assert "forget" not in generator.figures


def test_an_erasure_starts_where_the_first_stage_ended(run, files, first_stage, tmp_path):
    options = ["--from", first_stage, "--set", "saliency.kind=retain_aware", "--iterations", "1"]
    ended = run("erase", files.model, *SMALL, *options, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    start = json.loads((tmp_path / "run" / "start.json").read_text())["start"]
    for role, folder in (("generator", "model"), ("pseudo_score", "pseudo_score")):
        network = ModelFolder.load(first_stage / folder).network
        assert start[role]["fingerprint"] == fingerprint(network)
        assert start[role]["kind"] == role
    assert json.loads((tmp_path / "run" / "frozen.json").read_text())["frozen_changed"] == 0


def test_a_first_stage_of_another_model_is_refused(run, refused, files, first_stage, tmp_path):
    another = ModelFolder.load(files.model)
    with torch.no_grad():
        next(another.network.parameters())[0] += 1
    another.save(tmp_path / "another")
    options = [*SMALL, "--from", first_stage, "--iterations", "1", "--out", tmp_path / "run"]
    refused(run("erase", tmp_path / "another", *options), first_stage, "another model", "distill")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
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


# ---- prompts

PROMPTS = [
    "--set", "batch_size=2", "--set", "micro_batch=null", "--set", "generator.lr=1e-3",
    "--set", "text.max_prompts=40",
]  # fmt: skip
CONCEPT = [
    "--recipe", "object", "--name", "cat", "--override", "dog", "--density", "0.2", *PROMPTS,
    "--set", "saliency.batches=1", "--set", "saliency.batch_size=2", "--no-previews",
]  # fmt: skip


@pytest.fixture(scope="module")
def first_stage_of_prompts(pipeline, tmp_path_factory):
    """Stopped and taken up."""
    from pecker_fast import cli

    out = tmp_path_factory.mktemp("distill") / "one-step"
    command = ["distill", str(pipeline), "--out", str(out), *PROMPTS, "--iterations"]
    assert cli.main([*command, "1"]) == cli.main([*command, "2"]) == 0
    return out


@pytest.mark.slow
def test_a_concept_is_forgotten_from_a_first_stage(
    run, refused, pipeline, first_stage_of_prompts, tmp_path
):
    options = ["--from", first_stage_of_prompts, "--set", "saliency.kind=retain_aware",
               "--set", "generator.every_step=1", "--iterations", "1"]  # fmt: skip
    out = tmp_path / "run"
    ended = run("erase", "--pipeline", pipeline, *CONCEPT, *options, "--out", out)
    assert ended.code == 0, ended.err
    assert "0 of them changed" in ended.out
    start = json.loads((out / "start.json").read_text())["start"]
    for role, folder in (("generator", "pipeline"), ("pseudo_score", "pseudo_score")):
        network, _ = load_unet(first_stage_of_prompts / folder)
        assert (start[role]["kind"], start[role]["iterations"]) == (role, 2)
        assert start[role]["fingerprint"] == fingerprint(network)
    # What it made has a generator alone.
    again = run("erase", "--pipeline", pipeline, *CONCEPT, *options[2:], "--from", out,
                "--out", tmp_path / "second")  # fmt: skip
    refused(again, out, "no pseudo-score network")


@pytest.mark.slow
@pytest.mark.parametrize("keep_steps", [False, True])
def test_a_run_of_prompts_is_over_when_its_probe_says_so(pipeline, keep_steps, tmp_path):
    """Taken up, it trains no further."""
    settings = {
        "until": {"every": 2}, "iterations": 20, "batch_size": 2, "saliency.batches": 1,
        "saliency.batch_size": 2, "text.max_prompts": 40,
    }  # fmt: skip
    named = {"names": ["cat"], "name_overrides": ["dog"]}
    if keep_steps:
        settings |= {"text": "object", "until": {"every": 2, "steps": 2}, "steps": 2}
        config = load_baseline_config("keep_steps", settings, **named)
    else:
        config = load_config("object", {**settings, "micro_batch": None}, **named)
    groups = {"forget": [("a cat", 0)] * 2, "keep": [("a dog", 1), ("a cow", 1), ("a car", 0)]}
    captions, shapes = ConceptCaptions(("cat", "dog"), 0, 1, groups), []

    def all_dogs(images):
        shapes.append(tuple(images.shape))
        return torch.ones(len(images), dtype=torch.int64)

    judge = PromptJudge(all_dogs, lambda told: captions, lambda told, images: captions)
    showing = Showing("object", steps=2, judge=judge)
    for _ in range(2):
        folder, site = PipelineFolder.load(pipeline), Site(out=tmp_path / "run", device=CPU)
        assert carry_out(Concept(site, folder, config, showing)).facts.iterations == 2
    points = json.loads((tmp_path / "run" / "curve.json").read_text())
    assert [point["iteration"] for point in points] == [0, 2]
    assert (points[1]["forget_accuracy"], points[1]["forget_count"]) == (0.0, 2)
    assert (points[1]["keep_accuracy"], points[1]["keep_count"]) == (2 / 3, 3)
    assert set(shapes) == {(5, 3, 16, 16)}
    figures = json.loads((tmp_path / "run" / "report.json").read_text())["figures"]
    assert figures["class"] == "cat" and figures["keep_after"] == 2 / 3


def test_prompts_of_a_file_judge_a_pipeline(run, pipeline, tmp_path):
    """In its curve, its report and an attack."""
    prompts, judge, out = tmp_path / "prompts.csv", tmp_path / "judge", tmp_path / "run"
    prompts.write_text(
        "prompt,group,label\na cat,forget,cat\nmy own cat,forget,cat\n"
        "a dog,override,dog\na dog,neighbours,dog\na tree,keep,tree\n"
    )
    SmallClassifier(3, in_channels=3, width=4).save(judge)
    (judge / CARD_NAME).write_text('{"class_names": ["tree", "dog", "cat"]}')
    options = ["erase", "--pipeline", pipeline, *CONCEPT[:-1], "--out", out]
    few = ["--per-class", 4, "--teacher-steps", 2, "--iterations", 2]
    stop = ["--set", "until={every: 1, images: 2}"]
    ended = run(*options, "--prompts", prompts, "--classifier", judge, *few, *stop)
    assert ended.code == 0, ended.err
    figures = json.loads((out / "report.json").read_text())["figures"]
    assert (figures["class"], figures["override_class"]) == ("cat", "dog")
    assert sum(figures["after"][name]["count"] for name in ("neighbours", "others")) == 4
    assert json.loads((out / "curve.json").read_text())[0]["forget_count"] == 2
    attacked = run("attack", out, "--prompts", prompts, "--classifier", judge, "--images", 10)
    assert attacked.code == 0 and attacked.out.startswith("cat:"), attacked.err
