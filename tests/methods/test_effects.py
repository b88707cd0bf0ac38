"""What each method does to a network in a few dozen iterations: its own aim, measured."""

import pytest
import torch
from small import small_objective, train

from pecker_fast.runs.randomness import SALIENCY, IterationRandom

SETTINGS = {
    "iterations": 60,
    "batch_size": 11,
    "optimizer.lr": 5e-3,
    "optimizer.clip_grad_norm": None,
    "label_dropout": 0.0,
    "mask.kind": "full",
    "logging.every": 60,
    "logging.checkpoint_every": 60,
}


def run(method, **changes):
    """The objective, the original and the result."""
    objective = small_objective({**SETTINGS, **changes}, method, dropout=0.0)
    trainer, _ = train(objective)
    return objective, objective.original, trainer.erased_network()


@torch.no_grad()
def loss(objective, term, network):
    """The mean of a term over images and noise that training did not draw."""
    random = IterationRandom(7, 1000, torch.device("cpu"), SALIENCY)
    return float(objective.losses(term, network, objective.draw(term, random)).mean())


def test_random_labels_make_the_class_look_like_the_other():
    objective, before, after = run("random_label", lambda_remain=1e-3)
    assert loss(objective, "forget", after) < 0.3 * loss(objective, "forget", before)


def test_the_gradient_is_ascended():
    objective, before, after = run("negative_gradient", lambda_remain=0.0)
    assert loss(objective, "forget", after) < 1.5 * loss(objective, "forget", before) < 0


def test_fine_tuning_serves_the_classes_that_are_kept():
    objective, before, after = run("fine_tune", lambda_remain=1.0)
    assert loss(objective, "remain", after) < 0.8 * loss(objective, "remain", before)


@pytest.mark.parametrize("eta", [0.5, 3.0])
def test_esd_leads_as_far_away_as_it_is_told(eta):
    objective, before, after = run("esd", lambda_remain=0.0, eta=eta)
    assert loss(objective, "forget", after) < 0.3 * loss(objective, "forget", before)
