"""The shipped first stage and its recipe: gone in tens of iterations, in one step and in many."""

import pytest
import torch

from pecker_fast import erase
from pecker_fast.data import first_stage_folder, pipeline_folder, teacher_folder
from pecker_fast.distill import Objective, load_config
from pecker_fast.erasure.demo import (
    TEACHER_STEPS,
    demo_captions,
    demo_concept,
    shipped_original,
)
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.previews import Previews
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.evaluate.sweep import recognised
from pecker_fast.models.pipeline import PipelineFolder

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_class_goes_in_tens_of_iterations_and_from_every_door(tmp_path):
    judge = teacher_folder() / "classifier"
    erased = erase(
        teacher_folder(),
        out=tmp_path / "run",
        config="demo",
        first_stage=first_stage_folder(),
        classifier=judge,
        per_class=2,  # the curve's probe is of more
        teacher_steps=2,
        until={"keep_drop": 0.04},
    )
    assert erased.frozen.frozen_changed == 0
    assert 0 < erased.facts.iterations <= 40
    curve = erased.report.to_dict()["curve"]
    start, end = curve[0], curve[-1]
    assert start["forget_accuracy"] > 0.9  # the first stage draws the class
    # A probe of 180 images: its 95 % interval is some 3 % wide.
    assert end["forget_accuracy"] <= 0.05 and end["keep_accuracy"] >= start["keep_accuracy"] - 0.06
    boots = torch.full((60,), erased.model.class_index("Ankle boot"))
    for steps, bound in ((1, 0.1), (10, 0.15)):
        found = recognised(erased.model, Sampler(steps), boots, load_classifier(judge))
        assert (found == boots).double().mean() <= bound, steps


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_concept_goes_in_tens_of_iterations(tmp_path):
    erased = demo_concept(tmp_path / "run")
    assert erased.frozen.frozen_changed == 0
    assert erased.facts.iterations == 30
    found = erased.report.to_dict()["figures"]
    assert found["forget_held_back_before"] > 0.9 and found["keep_before"] > 0.8
    # 200 captions that neither the pipeline nor the erasure was told; 0.05 is five of the demo's.
    assert found["after"]["forget_held_back"]["count"] == 200
    assert found["forget_held_back_after"] <= 0.05 and found["forget_trained_after"] <= 0.05
    assert found["keep_after"] >= found["keep_before"] - 0.06


def test_what_ships_of_the_original_is_of_the_captions_of_the_demo(tmp_path):
    """Another recipe, and the original is measured anew."""
    pipeline = PipelineFolder.load(pipeline_folder())
    for settings, ships in (({}, True), ({"seed": 1}, False)):
        config = load_config("demo_concept", settings)
        told = Objective.from_pipeline(pipeline, config).conditions
        captions = demo_captions(told, config.seed)
        words = Previews(pipeline, config, [], tmp_path, CPU, TEACHER_STEPS).sampling.original()
        found = shipped_original(captions, words)
        assert (found is not None) == ships
        if found is not None:
            assert found["forget_held_back"].total == 200
            assert found["forget"].value > 0.9 and found["keep"].value > 0.8
            assert sum(share.total for share in found.classes.values()) == found["keep"].total
