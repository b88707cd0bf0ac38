"""GradientReducer: what the optimizer sees is the sum over all processes, at salient entries."""

import pytest
import torch
from gradient_jobs import (
    exchange,
    loss,
    network,
    released_under_ddp,
    sending_order,
    uneven,
)
from processes import run_processes

# One parameter as a whole, one in part, two not at all: one of these comes last in a backward pass.
MASK = {
    "a.weight": [0, 3, 4, 11],
    "a.bias": [],
    "b.weight": [0, 1, 2, 3, 4, 5],
    "b.bias": [],
    "unused.weight": [1],
    "unused.bias": [],
}


def gradients(rank):
    """name -> gradient of one process's loss, in float64."""
    made = network().double()
    loss(made, rank).backward()
    return {name: param.grad for name, param in made.named_parameters() if param.grad is not None}


@pytest.mark.parametrize(
    ("size", "bucket_bytes", "releases"),
    [(2, 2**20, False), (3, 1, False), (2, 2**20, True), (3, 1, True)],
    ids=["one bucket", "many buckets", "one bucket, released", "many buckets, released"],
)
def test_salient_gradients_are_summed(size, bucket_bytes, releases):
    own = [gradients(rank) for rank in range(size)]
    outcomes = run_processes(exchange, size, MASK, releases, bucket_bytes)
    for rank, outcome in enumerate(outcomes):
        assert outcome["bytes"] == 4 * sum(map(len, MASK.values()))
        for name, found in outcome["seen"].items():
            positions = torch.tensor(MASK[name], dtype=torch.long)
            expected = sum(one[name].flatten()[positions] for one in own)
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        for name, left in outcome["left"].items():
            if releases or name.startswith("unused"):
                assert left is None
                continue
            frozen = torch.ones(left.numel(), dtype=torch.bool)
            frozen[torch.tensor(MASK[name], dtype=torch.long)] = False
            torch.testing.assert_close(
                left.flatten()[frozen].double(),
                own[rank][name].flatten()[frozen],
                rtol=1e-5,
                atol=1e-6,
            )


def test_without_a_mask_everything_is_summed():
    own = [gradients(rank) for rank in range(2)]
    for outcome in run_processes(exchange, 2, None, False, 2**20):
        assert outcome["bytes"] == 4 * sum(param.numel() for param in network().parameters())
        for name, expected in own[0].items():
            for found in (outcome["left"][name], outcome["seen"][name]):
                torch.testing.assert_close(
                    found.flatten().double(), (expected + own[1][name]).flatten(), rtol=1e-6,
                    atol=1e-6,
                )  # fmt: skip


@pytest.mark.parametrize("differs", [False, True], ids=["one order", "another on the second"])
def test_what_is_full_first_is_sent_first(differs):
    outcomes = run_processes(sending_order, 2, differs)
    third, first, unused, second = (size + 1 for size in (7, 2, 11, 5))  # and one number more
    for outcome in outcomes:
        # As registered, from the end; then as the backward pass of the first process filled them.
        assert outcome["sent"][0] == [second, unused, first, third]
        assert outcome["sent"][1] == outcome["sent"][2] == [third, second, first, unused]
        for name, own in outcome["own"].items():
            assert torch.equal(outcome["sums"][name], 2 * own)


@pytest.mark.parametrize("case", ["earlier backward pass", "last process"])
@pytest.mark.parametrize(
    ("masked", "releases"),
    [(False, False), (True, False), (True, True)],
    ids=["dense", "masked", "released"],
)
def test_a_parameter_that_takes_part_now_and_then(masked, releases, case):
    """Every entry's gradient is x: 1 on the first process, 2 on the second."""
    expected = 3.0 if case == "earlier backward pass" else 2.0
    outcomes = run_processes(uneven, 2, masked, releases, case)
    for outcome in outcomes:
        weight, bias = outcome["squares"]
        torch.testing.assert_close(weight, torch.full_like(weight, 0.001 * expected**2))
        torch.testing.assert_close(
            bias, torch.full_like(bias, 0.001 * (4 if "earlier" in case else 1))
        )
        assert not any(outcome["unused"])  # no process has a gradient: no step, no weight decay
    for one, other in zip(outcomes[0]["weights"], outcomes[1]["weights"], strict=True):
        assert torch.equal(one, other)
    assert bool((outcomes[0]["weights"][0] != 1).any())


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
def test_released_gradients_under_ddp_are_refused(wrapped):
    for said in run_processes(released_under_ddp, 2, wrapped):
        if wrapped:
            assert said.startswith("release_grads=True does not work under DistributedDataParallel")
        else:
            assert said is None
