"""Two and four processes train as one with the same global batch."""

import pytest
import torch
from jobs import train_toy
from processes import run_processes

from pecker_fast.distributed import Ranks

OPTIONS = {
    "mask on the generator": {},
    "mask on both, one set of weights": {"mask.apply": "both"},
    "released gradients": {"mask.apply": "both", "optimizer.release_grads": True},
    "no mask": {"mask.kind": "full"},
    "micro-batches": {"micro_batch": 2, "optimizer.release_grads": True},
    # Tensor by tensor: the toy adds a class and a bias in one place, so that among all scores pairs
    # are equal but for rounding, and who of them is salient would be decided by it.
    "refreshed mask": {"mask.refresh_every": 2, "mask.apply": "both", "mask.scope": "per_tensor"},
    "one pass for both": {"share_generator_pass": True},
}


def assert_close(left, right):
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_one_process(settings):
    # SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0.
    settings = {**settings, "optimizer.eps": 1.0, "generator.lr": 0.05, "pseudo_score.lr": 0.05}
    alone = train_toy(Ranks(), settings)
    for outcome in run_processes(train_toy, 2, settings):
        assert outcome["mask"] == alone["mask"]
        assert outcome["frozen_changed"] == 0
        for network in ("generator", "pseudo_score", "average"):
            assert_close(outcome[network], alone[network])
        for ours, theirs in zip(outcome["metrics"], alone["metrics"], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_four_processes():
    settings = {"mask.apply": "both", "optimizer.eps": 1.0, "generator.lr": 0.05}
    alone = train_toy(Ranks(), settings)
    outcomes = run_processes(train_toy, 4, settings)
    assert len({outcome["digest"] for outcome in outcomes}) == 1  # the same bits everywhere
    assert_close(outcomes[3]["generator"], alone["generator"])
