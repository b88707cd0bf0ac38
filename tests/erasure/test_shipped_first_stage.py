"""The pipeline's shipped first stage and its recipe: the concept is gone in tens of iterations."""

import pytest
import torch

from pecker_fast.data import pipeline_folder
from pecker_fast.distill import Objective, load_config
from pecker_fast.erasure.demo import (
    TEACHER_STEPS,
    demo_concept,
    shipped_judge,
    shipped_original,
)
from pecker_fast.evaluate.previews import Previews
from pecker_fast.models.pipeline import PipelineFolder

CPU = torch.device("cpu")


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
        judge = shipped_judge(config.seed, CPU)
        captions = judge.captions([pair.forget for each in told.concepts for pair in each])
        words = Previews(pipeline, config, [], tmp_path, CPU, TEACHER_STEPS).sampling.original()
        found = shipped_original(captions, words)
        assert (found is not None) == ships
        if found is not None:
            assert found["forget_held_back"].total == 200
            assert found["forget"].value > 0.9 and found["keep"].value > 0.8
            assert sum(share.total for share in found.classes.values()) == found["keep"].total
