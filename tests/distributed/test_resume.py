"""A run that is taken up by another number of processes ends as if nothing had happened."""

import pytest
import torch
from jobs import train_toy
from processes import run_processes
from toys import toy_objective, weights

from pecker_fast.distributed import Ranks

# Constants as in test_training.py: Adam's first steps divide rounding by itself at tiny gradients.
LARGE_EPS = {"optimizer.eps": 1.0, "generator.lr": 0.05, "pseudo_score.lr": 0.05}
OPTIONS = {
    "refreshed mask on both, momentum": {
        "mask.apply": "both",
        "mask.refresh_every": 4,
        "optimizer.beta1": 0.9,
        "optimizer.weight_decay": 0.1,
    },
    "released gradients, one set of weights, cosine": {
        "mask.apply": "both",
        "optimizer.release_grads": True,
        "lr_schedule": "cosine",
    },
    "no mask": {"mask.kind": "full"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_one_two_four_one(tmp_path, options):
    settings = {"iterations": 12, "logging.checkpoint_every": 3, **LARGE_EPS, **options}
    whole = train_toy(Ranks(), settings)
    # Processes, the iteration at which the run is cut off, the checkpoint that it is taken up from.
    for size, until, first in [(1, 4, 0), (2, 7, 3), (4, 9, 6), (1, None, 9)]:
        outcomes = run_processes(train_toy, size, settings, str(tmp_path / "run"), until)
        assert [outcome["first"] for outcome in outcomes] == [first] * size
    (resumed,) = outcomes
    assert resumed["mask"] == whole["mask"]
    assert resumed["frozen_changed"] == 0
    start = weights(toy_objective(settings, dropout=0.0).teacher)
    moved = max(
        float((value - start[name]).abs().max()) for name, value in whole["average"].items()
    )
    assert moved > 1e-3  # a thousand times what is allowed below
    for network in ("generator", "pseudo_score", "average"):
        for name, value in whole[network].items():
            torch.testing.assert_close(
                resumed[network][name], value, rtol=1e-6, atol=1e-6, msg=name
            )
    assert resumed["metrics"][-1] == pytest.approx(whole["metrics"][-1], rel=1e-5, abs=1e-6)
