"""`pecker_fast.erase` and what its commands do, called from Python."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import model_of_shapes, tiny_scheduler, tiny_unet

import pecker_fast
from pecker_fast import ModelFolder, PeckerError, SaliencyMask
from pecker_fast.cli import main
from pecker_fast.distill.config import load_config
from pecker_fast.erasure.attack import attack
from pecker_fast.erasure.masks import mask_of_class
from pecker_fast.erasure.overrides import with_overrides
from pecker_fast.erasure.request import Request
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.judges import Judge

SMALL = {"batch_size": 2, "iterations": 2, "saliency.batches": 1, "saliency.batch_size": 2}
CLASS = {**SMALL, "generator.lambda_forget": 1, "generator.lr": 1e-3, "mask.density": 0.2}
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder; read-only."""
    path = tmp_path_factory.mktemp("model") / "model"
    model_of_shapes().save(path)
    return path


def test_it_does_what_the_command_does(model, tmp_path):
    erased = pecker_fast.erase(str(model), "star", "circle", out=tmp_path / "here", **CLASS)
    settings = [word for key, value in CLASS.items() for word in ("--set", f"{key}={value}")]
    words = ["erase", model, "--forget", 2, "--override", "circle", "--out", tmp_path / "there"]
    assert main([*map(str, words), *settings]) == 0
    ours, theirs = (load_file(tmp_path / side / WEIGHTS) for side in ("here", "there"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    assert erased.mask == SaliencyMask.load(tmp_path / "there" / "mask.safetensors")
    for name, value in erased.model.network.state_dict().items():
        assert torch.equal(value.cpu(), ours[name])
    assert erased.frozen.frozen_changed == 0 < erased.frozen.salient_changed
    assert (erased.model.kind, erased.model.figures["forget"]) == ("generator", "star")
    assert (erased.facts.iterations, erased.report, erased.out) == (2, None, tmp_path / "here")


def test_a_model_and_a_mask_in_memory(model, tmp_path):
    folder = ModelFolder.load(model)
    mask = SaliencyMask.random(folder.network, 0.05, seed=3)
    erased = pecker_fast.erase(folder, 2, 0, out=tmp_path / "run", mask=mask, **CLASS)
    assert erased.mask == mask and erased.frozen.salient == mask.nnz
    again = pecker_fast.erase(folder, 2, 0, out=tmp_path / "run", mask=mask, **CLASS)
    assert again.facts.resumed_at == 2


@pytest.mark.parametrize("keep_steps", [False, True])
def test_several_classes(model, keep_steps, tmp_path):
    SmallClassifier(3, width=4).save(tmp_path / "judge")
    settings = {**SMALL, "steps": 2} if keep_steps else CLASS
    erased = pecker_fast.erase(
        model, ["star", "circle"], "square", out=tmp_path / "run", keep_steps=keep_steps,
        classifier=tmp_path / "judge", per_class=4, teacher_steps=2, **settings,
    )  # fmt: skip
    assert erased.frozen.frozen_changed == 0 < erased.frozen.salient_changed
    assert erased.model.figures["forgotten"] == ["star", "circle"]
    found = json.loads((tmp_path / "run" / "report.json").read_text())["forgotten"]
    assert [(each["forget"], each["override"], each["count"]) for each in found] == [
        ("star", "square", 4), ("circle", "square", 4)
    ]  # fmt: skip
    assert (tmp_path / "run" / "report.html").is_file()
    with pytest.raises(PeckerError, match="--forget"):
        attack(tmp_path / "run", tmp_path / "judge")
    with pytest.raises(PeckerError, match="until is for runs that forget one class"):
        pecker_fast.erase(
            model, ["star", "circle"], "square", out=tmp_path / "other", keep_steps=keep_steps,
            until={}, **settings,
        )  # fmt: skip


def test_an_override_that_the_model_or_the_judge_chooses(tmp_path):
    """Class 3 is class 1 but for a little; the judge takes everything for class 2."""
    folder = ModelFolder(tiny_unet(4), tiny_scheduler(), ("a", "b", "c", "d"))
    with torch.no_grad():
        table = folder.network.class_embedding.weight
        table[3] = table[1] + 0.01 * table[2]

    class Always:
        def logits_and_features(self, images):
            return torch.tensor([0.0, 1.0, 2.0, 1.5]).expand(len(images), 4), images.flatten(1)

    def chosen(override, forget, judge=None):
        config = load_config(None, {"forget": forget, "override": override})
        return with_overrides(config, folder, judge, torch.device("cpu")).override

    judge = Judge(Always())
    assert chosen("nearest", "b") == 3 and chosen("nearest", 3) == 1
    assert chosen("classifier", "b", judge) == 2 and chosen("classifier", "c", judge) == 3
    assert chosen(["nearest", "a", "classifier"], ["b", "c", "d"], judge) == [0, "a", 0]
    assert chosen("a", "b") == "a" and chosen("random", "b") == "random"
    with pytest.raises(PeckerError, match="--classifier"):
        chosen("classifier", "b")


def test_a_setting_that_there_is_not(model, tmp_path):
    with pytest.raises(PeckerError, match="'iteration'"):
        pecker_fast.erase(model, "star", "circle", out=tmp_path / "run", iteration=3)
    assert not (tmp_path / "run").exists()


def test_the_mask_of_a_class(model, tmp_path):
    request = Request(
        out=tmp_path / "m.safetensors", model=model, forget="STAR", overrides=["circle"],
        settings={**CLASS, "mask.density": 0.1}, command="mask",
    )  # fmt: skip
    found = mask_of_class(request)
    assert (found.forget, found.kind) == ("star", "saliency")
    assert found.mask.density == pytest.approx(0.1, abs=1e-3)
    plot = found.save(request.out)
    assert SaliencyMask.load(request.out) == found.mask and plot.is_file()
    with pytest.raises(PeckerError, match="--pipeline"):
        Request(out=tmp_path, model=model, pipeline=tmp_path)
