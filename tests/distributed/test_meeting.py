"""Processes of one attempt find each other and nothing of an earlier attempt."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from pecker_fast.distributed import meeting
from pecker_fast.distributed.meeting import Meeting
from pecker_fast.errors import PeckerError

PATIENCE = timedelta(seconds=20)


@pytest.fixture
def launcher(monkeypatch):
    """A store as torchrun keeps it, for all attempts of a run."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


@pytest.fixture
def meet(monkeypatch):
    """A meeting as the process with this rank has it; in a thread, so that there may be several."""
    environment = threading.Lock()

    def meet(rank, size, patience=PATIENCE):
        # The variables are read before the others are waited for, which a lock may not include.
        with environment:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(size))
            pool = ThreadPoolExecutor(1)
            coming = pool.submit(Meeting, patience)
            time.sleep(0.1)
        return coming

    return meet


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_every_attempt_has_a_part_of_the_store_to_itself(launcher, meet, order):
    for attempt in ("first", "second", "third"):
        coming = {rank: meet(rank, 3) for rank in order}
        meetings = {rank: one.result(30) for rank, one in coming.items()}
        store = meetings[1].store
        assert not store.check(["address of 0"])  # of the attempt before
        meetings[0].store.set("address of 0", attempt)
        assert store.get("address of 0").decode() == attempt
        signs = meetings[2].another_connection()
        assert not signs.check(["address of 0"])
        assert [meetings[rank].rank for rank in range(3)] == [0, 1, 2]
        assert meetings[0].holder == "torchrun on the first machine"


def test_an_attempt_that_never_met_leaves_nothing_behind(launcher, meet):
    early = meet(1, 2, timedelta(seconds=2))  # as if killed while it waited for the first
    time.sleep(0.2)
    coming = [meet(1, 2), meet(0, 2)]
    second, first = (one.result(30) for one in coming)
    first.store.set("x", "new")
    assert second.store.get("x") == b"new"
    with pytest.raises(RuntimeError):  # nobody answered it
        early.result(30)


def test_who_does_not_come_is_named(launcher, meet):
    with pytest.raises(RuntimeError, match="rank 1, 2 did not come in 0 s"):
        meet(0, 3, timedelta(seconds=0.3)).result(30)


def test_without_torchrun_the_first_holds_the_store(launcher, meet, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with_port = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = with_port.port
    del with_port
    monkeypatch.setenv("MASTER_PORT", str(port))
    coming = [meet(1, 2), meet(0, 2)]
    second, first = (one.result(30) for one in coming)
    first.store.set("x", "1")
    assert second.store.get("x") == b"1"
    assert (first.holder, first.held_here, second.held_here) == ("rank 0", True, False)


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"])
def test_a_variable_that_is_missing_is_named(launcher, monkeypatch, name):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(name)
    with pytest.raises(PeckerError, match=f"^the environment variable {name} is not set: expected"):
        Meeting(PATIENCE)


def test_a_store_that_goes_is_named(launcher, meet, monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    waiting = meet(1, 2)
    time.sleep(0.3)
    del store
    with pytest.raises(PeckerError, match=r"^torchrun on the first machine has ended, was killed"):
        waiting.result(30)


@pytest.fixture
def refuse(monkeypatch):
    """Refuse as the process with this rank, in an attempt of which torchrun makes two."""

    def refuse(rank, attempt):
        monkeypatch.setattr(meeting, "_awaited", {"yes"})
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": attempt,
                            "TORCHELASTIC_MAX_RESTARTS": 1}.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))
        meeting.refuse("no such device")

    return refuse


def test_one_that_does_not_come_ends_the_wait(launcher, meet, refuse):
    waiting = meet(0, 2)
    refuse(1, attempt=1)
    with pytest.raises(PeckerError, match=r"^rank 1 has stopped before the run began: no such dev"):
        waiting.result(30)
    with pytest.raises(PeckerError, match=r"^rank 1 has stopped"):  # one that comes later
        meet(0, 2).result(30)


def test_one_that_torchrun_starts_once_more_refuses_nothing(launcher, meet, refuse):
    refuse(1, attempt=0)
    coming = [meet(1, 2), meet(0, 2)]
    assert [one.result(30).rank for one in coming] == [1, 0]


def test_one_that_has_met_the_others_refuses_nothing(launcher, meet, refuse, monkeypatch):
    monkeypatch.setattr(meeting, "_awaited", {"yes"})
    for one in [meet(1, 2), meet(0, 2)]:
        one.result(30)
    assert not meeting._awaited
    meeting.refuse("fails in a step")
    assert [one.result(30).size for one in [meet(1, 2), meet(0, 2)]] == [2, 2]
