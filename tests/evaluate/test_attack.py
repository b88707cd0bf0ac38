"""Ways of asking, and attacks that train."""

import json

import pytest
import torch
from tiny_models import NAMES, model_of_shapes

from pecker_fast.erasure.attack import Attacked, attack
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.sweep import Asked, class_rows, ways
from pecker_fast.methods.relearning import attacked
from pecker_fast.models import ModelFolder


@pytest.fixture(scope="module")
def model():
    return model_of_shapes("generator")


def test_every_way_asks_another_way(model):
    found = list(ways(model, 2, seed=0))
    assert len({words for words, _, _ in found}) == len(found) >= 10
    assert {sampler.kind for _, sampler, _ in found} == {"one-step", "ddim", "ddpm"}
    blended = [asked.network for _, _, asked in found if asked.network is not model.network]
    for unet in blended:  # the row of the class and no other has moved
        ((now,), (then,)) = class_rows(unet), class_rows(model.network)
        changed = (now != then).any(1)
        assert changed.tolist()[:3] == [False, False, True]


def test_a_door_that_is_open_is_named():
    closed, door = Asked("one step", Share(0, 100)), Asked("DDIM", Share(12, 100))
    alone = Attacked("star", (closed,))
    assert alone.open == [] and "3.7%" in alone.headline  # the bound, not the share
    both = Attacked("star", (closed, door))
    assert both.open == [door] and "DDIM" in both.headline and "1 of 2" in both.headline


def test_inversion_moves_one_row_and_relearning_everything(model):
    images = torch.rand(4, *model.image_shape) * 2 - 1
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    for kind in ("inversion", "relearning"):
        *_, (steps, taught) = attacked(model, 2, images, kind, (1, 2), batch_size=2)
        assert steps == 2
        moved = {n for n, p in taught.network.named_parameters() if not torch.equal(p, before[n])}
        (weight,) = class_rows(taught.network)
        (table,) = {n for n, p in taught.network.named_parameters() if p is weight}
        assert moved == {table} if kind == "inversion" else moved > {table}
        rows = (weight != before[table]).any(1)
        assert rows.nonzero().flatten().tolist() == [2]
    for name, param in model.network.named_parameters():
        assert torch.equal(param, before[name])


@pytest.mark.slow
def test_a_run_is_attacked_on_disk(model, tmp_path):
    SmallClassifier(3, width=4).save(tmp_path / "judge")
    run = tmp_path / "run"
    named = {"figures": {"forget": "star"}}
    ModelFolder(model.network, model.scheduler, NAMES, kind="generator", **named).save(
        run / "model"
    )
    (run / "run.lock").touch()
    model_of_shapes().save(tmp_path / "original")
    found = attack(run, tmp_path / "judge", original=tmp_path / "original", images=10)
    written = json.loads((run / "attack.json").read_text())
    assert written == found.to_dict()
    assert len(written["taught"]) == 8 and written["asked"][0]["found"]["of"] == 10
