"""Ctrl-C saves; one of several processes says that it was stopped, and only the first reports."""

import signal
import subprocess
import sys
import threading

import pytest

from pecker_fast.cli.stopping import Interrupted, a_last_word, saving_at_interrupt
from pecker_fast.distributed import Ranks

WAITING = """
import sys, threading
from pecker_fast.cli.stopping import a_last_word, speaking_last
with a_last_word("rank 3", lambda: "rank 1 was killed"):
    if sys.argv[1] == "said":
        with speaking_last():
            print("bad input", file=sys.stderr, flush=True)
    print("ready", flush=True)
    threading.Event().wait()
"""


def terminated(what):
    """A waiting process that is sent a SIGTERM: its exit code and what it wrote to stderr."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    return process.returncode, err


def test_a_process_that_is_stopped_says_so_in_one_line():
    code, err = terminated("waits")
    assert code == 128 + signal.SIGTERM
    assert err == (  # a bar may be open on the line before
        "\nrank 3: stopped by SIGTERM: rank 1 was killed; start the same command again to go on "
        "from the last checkpoint\n"
    )


def test_one_that_has_said_why_it_ends_is_silent():
    code, err = terminated("said")
    assert code == -signal.SIGTERM
    assert err == "bad input\n"


SLOW_REASON = """
import os, signal, threading, time
from pecker_fast.cli.stopping import a_last_word, speaking_last
asked = threading.Event()
def reason():
    asked.set()
    time.sleep(0.5)
    return "rank 1 was killed"
with a_last_word("rank 3", reason):
    os.kill(os.getpid(), signal.SIGTERM)
    asked.wait()
    with speaking_last():
        print("I lost the others")
"""


def test_one_that_is_stopped_says_one_line_though_it_finds_an_error_as_well():
    done = subprocess.run([sys.executable, "-c", SLOW_REASON], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
    assert done.stderr.startswith("\nrank 3: stopped by SIGTERM: rank 1 was killed; ")
    assert done.stderr.count("\n") == 2


def test_the_handlers_are_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with a_last_word("rank 3", lambda: "never said"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_of_several_reports(run, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    done = run("erase", "--help")
    assert done.code == 0
    assert bool(done.out) == (rank == 0)


@pytest.mark.parametrize("text", ["two", "0", "-2", "1.5"])
def test_a_number_of_processes_that_is_none(run, monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    for arguments in (["info"], ["erase", "nowhere", "--out", "run"]):
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"pecker-fast: WORLD_SIZE={text}: expected a whole number")
        assert done.err.count("\n") == 1


def test_an_empty_number_of_processes_is_one(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert run("info").code == 0
    assert Ranks.join("cpu") == Ranks()


@pytest.mark.parametrize("rank", [0, 1])
def test_every_one_of_several_names_its_error(run, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    done = run("info")
    assert (done.code, done.out) == (2, "")
    said = f"pecker-fast (rank {rank}): info: runs in one process; start it without torchrun"
    assert done.err.startswith(said) and done.err.count("\n") == 1


def test_one_process_alone_has_no_rank(run, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    done = run("erase", "nowhere", "--out", "run")
    assert done.code == 2
    assert done.err.startswith("pecker-fast: erase: give --forget")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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


def test_of_several_processes_torchruns_copy_of_a_ctrl_c_counts_for_nothing(monkeypatch, capfd):
    monkeypatch.setattr(Ranks, "any", lambda self, flag: flag)
    training = Run(3)
    with pytest.raises(Interrupted):
        for step in training.train(Ranks(0, 2)):
            if step == 3:
                signal.raise_signal(signal.SIGINT)
    assert training.saved == [3]
    assert capfd.readouterr().err == (
        "\nsaving after this iteration; Ctrl-C again ends at once, and torchrun ends all processes "
        "after 30 s, saved or not\n"
    )


def test_another_process_that_was_interrupted_stops_this_one(monkeypatch):
    monkeypatch.setattr(Ranks, "any", lambda self, flag: training.done == 4)
    training = Run()
    with pytest.raises(Interrupted, match="iteration 4 is saved"):
        list(training.train(Ranks(1, 2)))
    assert training.saved == [4]


def test_a_run_in_another_thread_is_left_alone():
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(Run().train()))
    thread.start()
    thread.join()
    assert seen == [1, 2, 3, 4, 5, 6]
