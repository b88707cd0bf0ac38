"""`pecker-fast erase --pipeline` end to end on a tiny random pipeline, and what it refuses."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from pecker_fast import apply_patch, remove_patch
from pecker_fast.distill import PeckerTrainer, load_config

QUICK = [
    "--iterations", "2", "--density", "0.2", "--set", "batch_size=2", "--set", "micro_batch=null",
    "--set", "saliency.batches=1", "--set", "saliency.batch_size=2", "--set", "generator.lr=1e-3",
    "--set", "text.max_prompts=40", "--teacher-steps", "2",
]  # fmt: skip
SLOW = pytest.mark.slow
OBJECT = ["--recipe", "object", "--name", "cat", "--override", "dog"]


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    """A finished run; read-only."""
    from pecker_fast import cli

    out = tmp_path_factory.mktemp("concept") / "run"
    arguments = ["erase", "--pipeline", pipeline, "--out", out, *OBJECT, *QUICK]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return out


def network(folder):
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def same(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


def test_diffusers_loads_what_comes_out(finished):
    pipe = StableDiffusionPipeline.from_pretrained(finished / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
    description = json.loads((finished / "pipeline" / "pecker_fast.json").read_text())
    assert (description["kind"], description["t_init"]) == ("generator", 625)
    assert "a photo of a cat at night" in description["forget"]


def test_the_report(finished):
    report = json.loads((finished / "report.json").read_text())
    assert (report["concept"], report["override"], report["recipe"]) == ("cat", "dog", "object")
    assert report["frozen_changed"] == 0 < report["salient_changed"]
    # 0.2 of the entries and a bit for each; the rest is names, which a real network hardly feels.
    assert report["patch_share"] < 0.6
    assert "While it ran" in (finished / "report.html").read_text()
    strip = load_file(finished / "previews.safetensors")
    # The original, and the generator before and after each of two iterations, for 8 prompts.
    assert sorted(strip, key=int) == ["-1", "0", "1", "2"]
    assert len(strip["0"]) == 3 + 2 + 3
    assert not torch.equal(strip["0"], strip["2"])


def test_the_patch_makes_it_of_the_original_and_back(pipeline, finished):
    base, erased, patched = network(pipeline), network(finished / "pipeline"), network(pipeline)
    apply_patch(patched, finished / "patch.safetensors")
    assert same(patched, erased)
    remove_patch(patched, finished / "patch.safetensors")
    assert same(patched, base)


# ---- with its many steps

KEEP = [
    "--keep-steps", "--iterations", "2", "--density", "0.2", "--set", "batch_size=2",
    "--set", "saliency.batches=1", "--set", "saliency.batch_size=2", "--set", "steps=2",
    "--set", "text.max_prompts=40", "--teacher-steps", "3", "--set", "optimizer.lr=1e-3",
]  # fmt: skip


@SLOW
def test_many_steps_stay(pipeline, run, tmp_path):
    out = tmp_path / "run"
    command = ("erase", "--pipeline", pipeline, "--out", out, *OBJECT, *KEEP)
    done = run(*command)
    assert done.code == 0, done.err
    assert "36 prompts to forget, 40 to keep" in done.err
    pipe = StableDiffusionPipeline.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=3, output_type="np").images.shape == (1, 16, 16, 3)
    before = StableDiffusionPipeline.from_pretrained(pipeline).scheduler.config
    assert dict(pipe.scheduler.config) == dict(before)
    description = json.loads((out / "pipeline" / "pecker_fast.json").read_text())
    assert (description["method"], description["iterations"]) == ("redirect", 2)
    assert description.get("kind") != "generator" and "a cat at night" in description["forget"]
    report = json.loads((out / "report.json").read_text())
    assert report["sampling"]["after"] == report["sampling"]["before"]
    assert report["sampling"]["after"]["evaluations"] == 6
    assert report["frozen_changed"] == 0 < report["salient_changed"]
    page = (out / "report.html").read_text()
    assert page.count("3 DDIM steps") == 3
    patched = network(pipeline)
    apply_patch(patched, out / "patch.safetensors")
    assert same(patched, network(out / "pipeline")) and not same(patched, network(pipeline))
    again = run(*command, "--no-previews", "--json")
    assert json.loads(again.out)["resumed_at"] == 2


def test_a_generator_has_no_steps_to_keep(finished, run, refused, tmp_path):
    out = tmp_path / "run"
    done = run("erase", "--pipeline", finished / "pipeline", "--out", out, *OBJECT, *KEEP)
    refused(done, finished / "pipeline", "one-step")
    assert not out.exists()


# ---- begun and ended


@pytest.mark.slow
def test_a_one_step_generator_to_start_from(pipeline, finished, run, tmp_path):
    """The run starts there, and its patch belongs to it."""
    start, out = finished / "pipeline", tmp_path / "run"
    arguments = ["--pipeline", pipeline, "--generator", start, "--out", out, *OBJECT, *QUICK]
    done = run("erase", *arguments, "--set", "precision=fp32", "--no-previews")
    assert done.code == 0, done.err
    assert "; 0 of them changed, compared bit by bit.\n" in done.out
    patched = network(start)
    apply_patch(patched, out / "patch.safetensors")
    assert same(patched, network(out / "pipeline"))
    assert not same(patched, network(start))


@pytest.mark.slow
def test_a_frozen_entry_that_changed_ends_with_code_3_and_without_a_patch(
    pipeline, finished, run, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    command = ["erase", "--pipeline", pipeline, "--out", out, *OBJECT, *QUICK, "--no-previews"]
    assert json.loads((out / "frozen.json").read_text())["frozen_changed"] == 0
    assert (out / "patch.safetensors").exists()
    finish = PeckerTrainer.erased_network

    def moved(trainer, over=False):
        network = finish(trainer, over=over)
        network.conv_in.weight += 1.0
        return network

    monkeypatch.setattr(PeckerTrainer, "erased_network", moved)
    done = run(*command)
    assert done.code == 3 and "'conv_in.weight' changed" in done.err
    changed = json.loads((out / "frozen.json").read_text())["frozen_changed_in"]
    assert list(changed) == ["conv_in.weight"]
    assert f"; {changed['conv_in.weight']} of them changed" in done.out
    assert (out / "pipeline").is_dir() and not (out / "patch.safetensors").exists()


@pytest.mark.parametrize("recipe", ["celebrity", "nudity", "object", "style"])
def test_recipes_have_the_published_constants(recipe):
    names = () if recipe == "nudity" else ("a",)
    config = load_config(recipe, names=names, name_overrides=names and ("b",))
    assert config.iterations * config.batch_size == 100_000
    assert (config.alpha, config.optimizer.beta1, config.optimizer.eps) == (1.0, 0.0, 1e-6)
    assert (config.pseudo_score.lr, config.generator.lr) == (3e-6, 1e-6)
    time = config.diffusion
    assert (time.t_init, time.t_min, time.t_max) == (None, 20, 980)
    assert set(config.text.guidance.model_dump().values()) == {4.5}
    terms = (config.generator, config.pseudo_score)
    assert {(t.lambda_remain, t.lambda_forget) for t in terms} == {(1.0, 1.0)}
    assert config.text.dropout == 0.1


# ---- images of pipelines


@pytest.mark.parametrize("steps", [[], ["--steps", "2", "--guidance", "2"]], ids=["one", "two"])
def test_images_of_a_pipeline(finished, run, tmp_path, steps):
    png = tmp_path / "cats.png"
    prompts = ["--prompt", "a cat", "--prompt", "a dog", "--per-class", "3"]
    done = run("sample", finished / "pipeline", *prompts, "--png", png, *steps)
    assert done.code == 0, done.err
    assert png.stat().st_size > 1000
