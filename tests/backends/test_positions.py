"""Positions on a device: one copy for everyone who uses the same mask there."""

import gc

import torch

from pecker_fast.backends.layout import positions_on


def test_positions_are_copied_once_and_freed_with_their_last_user():
    positions = torch.arange(5, dtype=torch.int32)
    assert positions_on(positions, torch.device("cpu")) is positions
    meta = torch.device("meta")
    first = positions_on(positions, meta)
    assert first.device == meta
    assert positions_on(positions, meta) is first
    assert positions_on(positions.clone(), meta) is not first
    del first
    gc.collect()
    fresh = positions_on(positions, meta)
    assert fresh.shape == (5,)
    assert positions_on(positions, meta) is fresh
