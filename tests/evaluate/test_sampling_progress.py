"""The progress bar of sampling: many steps take minutes a batch, and the bar moves on meanwhile."""

import numpy as np
import pytest
import torch

from pecker_fast.distributed import Ranks
from pecker_fast.evaluate import batches
from pecker_fast.evaluate.sampling import Sampler

LABELS = torch.tensor([0, 1, 2, 2, 1])


@pytest.fixture
def bars(monkeypatch):
    """Those that were shown; each keeps how far it was moved."""
    shown = []

    class Recorded(batches.Progress):
        def __init__(self, title, total):
            super().__init__(title, total)
            self.about, self.moves = (total, title), []
            if title is not None:
                shown.append(self)

        def update(self, n=1):
            self.moves.append(n)
            super().update(n)

    monkeypatch.setattr(batches, "Progress", Recorded)
    return shown


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({"steps": 8, "method": "ddpm"}, [1, 2, 3, 4, 5]),
        ({"steps": 2}, [2, 4, 5]),
        ({"steps": 1}, [4, 5]),
    ],
)
def test_it_moves_on_within_a_batch_of_many_steps(tiny_model, bars, settings, places):
    sampler = Sampler(**settings, batch_size=4)
    quiet = sampler.sample(tiny_model, LABELS)
    assert not bars
    assert torch.equal(sampler.sample(tiny_model, LABELS, "drawing"), quiet)
    (bar,) = bars
    assert bar.about == (5, "drawing")
    assert np.cumsum([n for n in bar.moves if n]).tolist() == places


def test_it_counts_the_batches_that_are_drawn(tiny_model, bars):
    sampler = Sampler(steps=2, batch_size=2)
    drawn = sampler.batches(tiny_model, LABELS, only=[2, 0], progress="drawing")
    # A batch is done when it has been taken, not when its last step begins.
    assert [(part.start, bars[0].n) for part, _ in drawn] == [(0, 1), (4, 2)]
    assert (bars[0].about[0], bars[0].n, len(bars)) == (3, 3, 1)


def test_it_is_the_first_processs_alone(tiny_model, bars, monkeypatch):
    monkeypatch.setattr(Ranks, "gather", lambda self, rows, total: None)
    sampler = Sampler(steps=2, batch_size=2)
    assert sampler.sample(tiny_model, LABELS, "drawing", ranks=Ranks(rank=1, size=2)) is None
    assert not bars
