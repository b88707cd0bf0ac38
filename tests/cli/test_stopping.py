"""Ctrl-C saves; of several processes the first reports, and torchrun hears why one failed."""

import json
import signal
import threading

import pytest

from pecker_fast.distributed import Ranks, ranks
from pecker_fast.runs.interrupts import Interrupted, saving_at_interrupt


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_of_several_reports(run, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    done = run("erase", "--help")
    assert done.code == 0
    assert bool(done.out) == (rank == 0)


def test_a_number_of_processes_that_is_none(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    done = run("info")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("pecker-fast: info: runs in one process; start it without torchrun")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("under_torchrun", [True, False])
def test_bad_input_of_several_processes(run, monkeypatch, tmp_path, rank, under_torchrun):
    """The first says it, and torchrun of all of them; without torchrun each says its own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(ranks, "HEAD_START", 0.0)
    report = tmp_path / "error.json"
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
    done = run("info")
    assert (done.code, done.out) == (2, "")
    said = "info: runs in one process; start it without torchrun"
    if under_torchrun:
        message = json.loads(report.read_text())["message"]
        assert message["message"].startswith(said)
        assert "py_callstack" not in message["extraInfo"]
    if rank and under_torchrun:
        assert done.err == ""
    else:
        who = "pecker-fast (rank 1)" if rank else "pecker-fast"
        assert done.err.startswith(f"{who}: {said}") and done.err.count("\n") == 1


def test_torchrun_gets_the_traceback_of_a_fault(run, monkeypatch, tmp_path):
    def fail(self, *args, **kwargs):
        raise ZeroDivisionError("no such luck")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr("click.Group.invoke", fail)
    done = run("info")
    assert done.code == 1
    assert done.err.startswith("pecker-fast: internal error: ZeroDivisionError: no such luck")
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert "in fail" in message["extraInfo"]["py_callstack"]


class Run:
    """Counts steps and saves; a Ctrl-C comes in the middle of those that are named."""

    def __init__(self, *interrupted_in, length=6):
        self.done, self.saved = 0, []
        self._interrupted_in, self._length = interrupted_in, length

    def steps(self):
        while self.done < self._length:
            if self.done + 1 in self._interrupted_in:
                signal.raise_signal(signal.SIGINT)
            self.done += 1
            yield self.done

    def save(self):
        self.saved.append(self.done)

    def train(self, ranks=None):
        ranks = ranks or Ranks()
        return saving_at_interrupt(self.steps(), lambda: self.done, self.save, ranks)


def test_ctrl_c_finishes_the_step_and_saves(capfd):
    training, seen = Run(3), []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^interrupted; iteration 3 is saved; start the same"):
        for step in training.train():
            seen.append(step)
    assert (seen, training.saved) == ([1, 2, 3], [3])
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err == "\nsaving after this iteration; Ctrl-C again ends at once\n"


def test_without_ctrl_c_nothing_is_different():
    training = Run()
    assert list(training.train()) == [1, 2, 3, 4, 5, 6]
    assert training.saved == []


def test_a_second_ctrl_c_ends_at_once():
    training = Run(3)
    with pytest.raises(Interrupted, match="to go on from the last checkpoint"):
        for step in training.train():
            if step == 3:
                signal.raise_signal(signal.SIGINT)
    assert training.saved == []


def test_several_processes_leave_ctrl_c_alone():
    with pytest.raises(KeyboardInterrupt):
        for step in (training := Run(3)).train(Ranks(0, 2)):
            assert step < 3
    assert training.saved == []


def test_a_run_in_another_thread_is_left_alone():
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(Run().train()))
    thread.start()
    thread.join()
    assert seen == [1, 2, 3, 4, 5, 6]
