"""What a process of several says at a SIGTERM, wherever it is, and that only the first speaks."""

import signal
import subprocess
import sys

import pytest

from pecker_fast.commands.stopping import a_last_word

WAITING = """
import sys, threading
from pecker_fast.commands.stopping import a_last_word, without_last_word
with a_last_word("rank 3: stopped from outside"):
    if sys.argv[1] == "said":
        print("bad input", file=sys.stderr, flush=True)
        without_last_word()
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
    assert err == "\nrank 3: stopped from outside\n"  # a bar may be open on the line before


def test_one_that_has_said_why_it_ends_is_silent():
    code, err = terminated("said")
    assert code == -signal.SIGTERM
    assert err == "bad input\n"


def test_the_handlers_are_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with a_last_word("never said"):
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
