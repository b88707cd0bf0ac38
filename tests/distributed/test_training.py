"""Two and four processes train as one with the same batch, and take up each other's runs."""

import pytest
import torch
from processes import run_processes
from toy_jobs import train_toy
from toys import assert_same_bits, toy_objective, weights

from pecker_fast.distributed import Ranks

# SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0.
STEPS = {"optimizer.eps": 1.0, "generator.lr": 0.05, "pseudo_score.lr": 0.05}
OPTIONS = {
    "mask on the generator": {},
    "mask on both, one set of weights": {"mask.apply": "both"},
    "released gradients": {"mask.apply": "both", "optimizer.release_grads": True},
    "no mask": {"mask.kind": "full"},
    "micro-batches": {"micro_batch": 2, "optimizer.release_grads": True},
    # Tensor by tensor: the toy adds a class and a bias in one place, so that among all scores pairs
    # are equal but for rounding, and who of them is salient would be decided by it.
    "refreshed mask": {"mask.refresh_every": 2, "mask.apply": "both", "mask.scope": "per_tensor"},
}


def assert_close(left, right):
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_one_process(settings):
    settings = {**settings, **STEPS}
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


RESUMED = {"mask.apply": "both", "optimizer.beta1": 0.9, "optimizer.weight_decay": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"mask.refresh_every": 4}, {"optimizer.release_grads": True, "lr_schedule": "cosine"}],
    ids=["refreshed mask", "released gradients"],
)
def test_one_two_four_one(tmp_path, options):
    """A run that is taken up by another number of processes ends as if nothing had happened."""
    settings = {"iterations": 12, "logging.checkpoint_every": 3, **STEPS, **RESUMED, **options}
    whole = train_toy(Ranks(), settings)
    # Processes, the iteration at which the run is cut off, the checkpoint that it is taken up from.
    for size, until, first in [(1, 4, 0), (2, 7, 3), (4, 9, 6), (1, None, 9)]:
        outcomes = run_processes(train_toy, size, settings, str(tmp_path / "run"), until)
        assert [outcome["first"] for outcome in outcomes] == [first] * size
        for outcome in outcomes:
            assert_same_bits(outcome["generator"], outcomes[0]["generator"])
    (resumed,) = outcomes
    assert resumed["mask"] == whole["mask"]
    assert resumed["frozen_changed"] == 0
    start = weights(toy_objective(settings, dropout=0.0).teacher)
    moved = max(
        float((value - start[name]).abs().max()) for name, value in whole["average"].items()
    )
    assert moved > 1e-3  # a thousand times what is allowed below
    for network in ("generator", "pseudo_score", "average"):
        assert_close(resumed[network], whole[network])
    assert resumed["metrics"][-1] == pytest.approx(whole["metrics"][-1], rel=1e-5, abs=1e-6)
