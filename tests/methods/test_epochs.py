"""Which images an iteration sees, and at which time steps."""

import pytest
import torch

from pecker_fast.methods.image_batches import ShuffledEpochs, timesteps
from pecker_fast.runs.randomness import TRAINING, IterationRandom


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (7, 7), (4, 10), (5, 1)])
def test_every_image_once_per_epoch(count, batch_size):
    order = ShuffledEpochs(count, batch_size, seed=3)
    batches = [order.indices(iteration) for iteration in range(3 * count)]
    assert all(len(batch) == batch_size for batch in batches)
    seen = torch.cat(batches)
    for epoch in seen[: len(seen) // count * count].view(-1, count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_epochs_differ_and_seeds_and_streams():
    epoch = ShuffledEpochs(50, 50, seed=0)
    orders = [epoch.indices(0), epoch.indices(1), ShuffledEpochs(50, 50, seed=1).indices(0)]
    orders.append(ShuffledEpochs(50, 50, seed=0, stream=1).indices(0))
    for first in range(4):
        for second in range(first):
            assert not torch.equal(orders[first], orders[second])


def test_any_iteration_can_be_asked_for():
    forwards = ShuffledEpochs(10, 4, seed=5)
    in_turn = [forwards.indices(iteration) for iteration in range(12)]
    for iteration in (11, 0, 5, 4):
        assert torch.equal(ShuffledEpochs(10, 4, seed=5).indices(iteration), in_turn[iteration])
        assert torch.equal(forwards.indices(iteration), in_turn[iteration])


@pytest.mark.parametrize("count", [1, 7, 8])
def test_timesteps_come_in_pairs(count):
    random = IterationRandom(0, 0, torch.device("cpu"), TRAINING)
    t = timesteps(count, 1000, random)
    assert t.shape == (count,)
    assert t.dtype == torch.int64
    half = count // 2 + 1
    assert torch.equal(t[half:], 999 - t[: count - half])


def test_timesteps_cover_the_whole_schedule():
    random = IterationRandom(0, 0, torch.device("cpu"), TRAINING)
    t = timesteps(2000, 4, random)
    counts = torch.bincount(t, minlength=4)
    assert len(counts) == 4
    assert int(counts.min()) > 400  # 500 expected, deviation 19
