"""Signals save; of several processes the first reports, and torchrun hears why one failed."""

import json
import signal
import subprocess
import sys

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


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "click"),
        (signal.SIGINT, "numpy"),
        (signal.SIGINT, "torch.nn"),
        (signal.SIGTERM, "torch.nn"),
    ],
)
def test_a_signal_while_packages_load_is_quiet(number, module):
    """In the middle of an import, from which an exception may come out as another one."""
    code = (
        "import signal, sys; from pecker_fast.__main__ import main\n"
        "class Interrupts:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == {module!r}: signal.raise_signal({int(number)})\n"
        "sys.meta_path.insert(0, Interrupts)\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "info"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "pecker-fast: interrupted\n"


class Run:
    """Counts steps and saves; a signal comes in the middle of those that are named."""

    def __init__(self, *interrupted_in, length=6, number=signal.SIGINT):
        self.done, self.saved = 0, []
        self._interrupted_in, self._length, self._number = interrupted_in, length, number

    def steps(self):
        while self.done < self._length:
            if self.done + 1 in self._interrupted_in:
                signal.raise_signal(self._number)
            self.done += 1
            yield self.done

    def save(self):
        self.saved.append(self.done)

    def train(self, ranks=None):
        ranks = ranks or Ranks()
        return saving_at_interrupt(self.steps(), lambda: self.done, self.save, ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(capfd, number):
    training, seen = Run(3, number=number), []
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"^interrupted; iteration 3 is saved; start the same"):
        for step in training.train():
            seen.append(step)
    assert (seen, training.saved) == ([1, 2, 3], [3])
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == "\nsaving after this iteration; Ctrl-C again ends at once\n"


def test_a_second_ctrl_c_ends_at_once():
    training = Run(3)
    with pytest.raises(Interrupted, match="to go on from the last checkpoint"):
        for step in training.train():
            if step == 3:
                signal.raise_signal(signal.SIGINT)
    assert training.saved == []


def test_several_processes_stop_where_one_is_asked_to(monkeypatch):
    """Which of them got the signal does not matter."""
    training = Run()
    monkeypatch.setattr(Ranks, "any", lambda ranks, here: training.done == 4)
    with pytest.raises(Interrupted, match="iteration 4 is saved"):
        list(training.train(Ranks(1, 2)))
    assert training.saved == [4]
