"""Two processes train as one with the same batch, and send what the method needs."""

import pytest
import torch
from distributed.processes import run_processes
from methods.jobs import train_small

from pecker_fast.distributed import Ranks

pytestmark = pytest.mark.slow

# SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0.
STEPS = {"optimizer.eps": 1.0, "optimizer.lr": 0.05}
CASES = {
    "norm clipping": ("random_label", {"optimizer.clip_grad_norm": 0.05}),
    "salient gradients": ("random_label", {"optimizer.clip_grad_norm": None}),
    "released gradients": (
        "negative_gradient",
        {"optimizer.clip_grad_norm": None, "optimizer.release_grads": True},
    ),
    "esd, everything learns": ("esd", {"lambda_remain": 0.0, "mask.kind": "full"}),
    "fine_tune, average": ("fine_tune", {"mask.kind": "random", "ema.decay": 0.5}),
}


def assert_close(left, right):
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(("method", "settings"), CASES.values(), ids=CASES.keys())
def test_two_processes_train_as_one(method, settings):
    settings = {**STEPS, **settings}
    alone = train_small(Ranks(), method, settings)
    start = train_small(Ranks(), method, {**settings, "optimizer.lr": 0.0})
    outcomes = run_processes(train_small, 2, method, settings)  # 5 images: 2 and 3
    for outcome in outcomes:
        assert outcome["mask"] == alone["mask"] and outcome["frozen_changed"] == 0
        assert_close(outcome["network"], alone["network"])
        assert_close(outcome["result"], alone["result"])
        for ours, theirs in zip(outcome["losses"], alone["losses"], strict=True):
            assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-5, abs=1e-6))
        for name, value in outcome["network"].items():
            assert torch.equal(value, outcomes[0]["network"][name]), name
    moved = [
        float((alone["network"][name] - value).abs().max())
        for name, value in start["network"].items()
    ]
    assert max(moved) > 1e-3  # or the comparison above says nothing


def test_only_salient_gradients_are_sent_unless_a_norm_is_taken_over_all():
    for clip, entries in ((None, "salient"), (0.05, "numel")):
        outcome = run_processes(train_small, 2, "random_label", {"optimizer.clip_grad_norm": clip})[
            0
        ]
        assert outcome["sent"] == [4 * outcome[entries]] * 6  # float32, in each of 6 steps


def test_a_run_of_two_processes_is_resumed_by_one(tmp_path):
    settings = {**STEPS, "ema.decay": 0.5}
    whole = train_small(Ranks(), "random_label", settings)
    run_processes(train_small, 2, "random_label", settings, str(tmp_path), 4)
    rest = train_small(Ranks(), "random_label", settings, tmp_path)
    assert rest["first"] == 3  # the checkpoint; iteration 4 is done again
    assert_close(rest["network"], whole["network"])
    assert_close(rest["result"], whole["result"])


def test_with_dropout_processes_still_have_the_same_weights():
    first, second = run_processes(
        train_small, 2, "random_label", {"iterations": 2}, None, None, 0.5
    )
    for name, value in first["network"].items():
        assert torch.equal(value, second["network"][name]), name
