"""The shipped model forgets a class and keeps its many steps."""

import pytest
import torch
from pecker_fast_demo import teacher_folder

from pecker_fast import erase
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.forgetting import evaluate_images
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.models import ModelFolder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_class_goes_and_many_steps_stay(tmp_path):
    erased = erase(
        teacher_folder(), "Ankle boot", "Bag", out=tmp_path / "run", keep_steps=True,
        iterations=50, batch_size=8, **{"optimizer.lr": 1e-3},
    )  # fmt: skip
    assert erased.frozen.frozen_changed == 0 < erased.frozen.frozen
    original = ModelFolder.load(teacher_folder())
    judge = load_classifier(teacher_folder() / "classifier", original.class_names)
    statistics = ClassStatistics.load(teacher_folder() / "statistics.safetensors")
    labels = torch.cat([balanced_labels(10, 20), torch.full((80,), 9)])
    before, after = (
        evaluate_images(
            Sampler(10).sample(model, labels), labels, judge, statistics, 9, 8, None, 10
        )
        for model in (original, erased.model)
    )
    assert before.forget_accuracy > 0.9
    # Measured: 0 of 180 images. The bound of 0 of 100 is 3.7 %, and other machines round otherwise.
    assert after.forget_accuracy <= 0.05 and after.override_accuracy > 0.8
    assert after.keep_accuracy >= before.keep_accuracy - 0.05
    assert after.frechet <= 1.3 * before.frechet
