"""MaskedAdamW on parameters that `fully_shard` spread over processes."""

import pytest
import torch
from oracle import Oracle, bits
from processes import run_processes
from sharded_jobs import (
    BASE,
    deltas_after_steps,
    make_mask,
    make_network,
    refusals,
    train_as_told,
    train_cases,
    train_scaled,
    train_switched,
    weights,
    whole_gradients,
)

from pecker_fast.distributed import Ranks

CASES = {
    "mask": {},
    "amsgrad": {"amsgrad": True},
    "no exp_avg": {"betas": (0.0, 0.99)},
    "no mask": {"masked": False},
    "released gradients": {"release_grads": True},
    "clipped entries": {"clip_value": 0.01},
    "masters": {"dtype": "bfloat16"},
    "released in bfloat16": {"dtype": "bfloat16", "release_grads": True},
    "float64": {"dtype": "float64"},
}


def assert_same_bits(left, right, what):
    assert left.keys() == right.keys(), what
    for name, value in left.items():
        assert value.dtype == right[name].dtype, f"{what}: {name}"
        assert torch.equal(bits(value), bits(right[name])), f"{what}: {name}"


@pytest.mark.parametrize(
    ("size", "mesh"),
    [(1, None), (2, None), *(pytest.param(4, m, marks=pytest.mark.slow) for m in (None, (2, 2)))],
    ids=str,
)
def test_same_bits_as_unsharded(size, mesh):
    """All processes see the same batch, so that the mean of their gradients is exact."""
    cases = list(CASES.values())
    expected = train_cases(Ranks(), cases, False)
    outcomes = run_processes(train_cases, size, cases, True, True, mesh)
    holders = mesh[1] if mesh else size
    for number, name in enumerate(CASES):
        alone = expected[number]
        for outcome in outcomes:
            assert_same_bits(outcome[number]["weights"], alone["weights"], name)
            assert outcome[number]["state"].keys() == alone["state"].keys()
            for key, state in alone["state"].items():
                assert_same_bits(outcome[number]["state"][key], state, f"{name}, {key}")
        # Every salient entry's state is held once in each group of holders.
        held = sum(outcome[number]["held"] for outcome in outcomes)
        assert held == alone["held"] * size // holders


@pytest.mark.parametrize("masked", [True, False])
def test_every_process_has_the_whole_delta(masked):
    values, digest, _ = deltas_after_steps(Ranks(), masked, False)
    for outcome, found, refused in run_processes(deltas_after_steps, 2, masked, True):
        assert_same_bits(outcome, values, "delta")
        assert {n: v.shape for n, v in outcome.items()} == {n: v.shape for n, v in values.items()}
        assert found == digest
        assert "sharded" in refused


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_equals_unsharded_with_the_same_global_batch(size):
    # A large eps: Adam's first steps divide rounding by itself where a gradient is almost 0.
    cases = [
        {"eps": 1.0, "masked": False},
        {"eps": 1.0, "release_grads": True, "max_norm": 0.05},
    ]
    expected = train_cases(Ranks(), cases, False)
    for outcome in run_processes(train_cases, size, cases, True, False):
        for ours, alone in zip(outcome, expected, strict=True):
            for name, value in alone["weights"].items():
                torch.testing.assert_close(
                    ours["weights"][name], value, rtol=1e-6, atol=1e-6, msg=name
                )
            # Sums of float32 gradients in another order.
            assert ours["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        assert outcome[1]["grads"] == 0  # released
    assert expected[1]["norms"][0] > 0.05  # something was clipped


def test_agrees_with_torch_on_salient_entries_and_keeps_the_others():
    network = make_network()
    oracle = Oracle(weights(network), make_mask().to_dense(), [BASE])
    for step in range(4):
        oracle.step(whole_gradients(network, step))
    for outcome in run_processes(train_as_told, 2, 4):
        oracle.check(outcome)


def test_sharded_after_the_optimizer_was_made():
    """As Accelerate does it."""
    cases = [(0, {}), (0, {"release_grads": True}), (2, {}), (2, {"amsgrad": True})]
    expected = train_switched(Ranks(), cases, False)
    outcomes = run_processes(train_switched, 2, cases, True)
    for number, (case, alone) in enumerate(zip(cases, expected, strict=True)):
        for outcome in outcomes:
            found = outcome[number]
            assert_same_bits(found["weights"], alone["weights"], case)
            for when in ("before", "after"):
                assert found[when].keys() == alone[when].keys()
                for key, state in alone[when].items():
                    assert_same_bits(found[when][key], state, f"{case}, {when}, {key}")
        assert sum(outcome[number]["held"] for outcome in outcomes) == alone["held"]


def test_grad_scaler():
    """An infinity on one process skips the step on all."""
    alone = train_scaled(Ranks(), False, 0)
    for outcome in run_processes(train_scaled, 2, True, 1):
        assert_same_bits(outcome["scaled"], alone["scaled"], "scaled")
        assert_same_bits(outcome["skipped"], outcome["scaled"], "skipped")
        assert set(outcome["steps"]) == {3}
        assert outcome["scale"] == 2.0**9


def test_refusals():
    first, second = run_processes(refusals, 2)
    for heard in (first, second):
        assert "parameter 'weight' is a DTensor placed (Shard(dim=1),)" in heard["columns"]
        assert "expected Shard(dim=0) along one dimension" in heard["twice"]
        assert "sharded unevenly: this process holds shape" in heard["uneven"]
        for key in ("other masks", "new masks", "switched masks"):
            assert "different masks: make the mask once, save it" in heard[key]
        assert "is a DTensor: pass mask.full_tensor()" in heard["sharded mask"]
        assert "use grad.redistribute(placements=param.placements)" in heard["gradient"]
