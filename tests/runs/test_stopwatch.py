"""Seconds of training: what callers do between iterations does not count, earlier starts do."""

import itertools

import pytest
from toys import toy_objective

from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.runs import stopwatch
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    return now


def test_blocks_add_up_and_pauses_do_not(clock):
    watch = Stopwatch(5.0)
    with watch:
        clock[0] += 2
        assert watch.seconds == 7.0
    clock[0] += 50
    with watch:
        clock[0] += 1
    assert watch.seconds == 8.0


def test_a_run_that_is_taken_up_goes_on_counting(clock, tmp_path, monkeypatch):
    changes = {"iterations": 4, "logging.checkpoint_every": 2}
    iterate = PeckerTrainer._iterate

    def slow(trainer):
        clock[0] += 10
        return iterate(trainer)

    monkeypatch.setattr(PeckerTrainer, "_iterate", slow)
    with RunDirectory(tmp_path / "run") as directory:
        trainer = PeckerTrainer(toy_objective(changes), run_directory=directory)
        for _ in itertools.islice(trainer.run(), 3):
            clock[0] += 1000  # the caller judges images
        assert trainer.stopwatch.seconds == 30
    with RunDirectory(tmp_path / "run") as directory:
        again = PeckerTrainer(toy_objective(changes), run_directory=directory)
        assert again.stopwatch.seconds == 20  # of the checkpoint: iteration 3 is done again
        assert len(list(again.run())) == 2
        assert again.stopwatch.seconds == 40
