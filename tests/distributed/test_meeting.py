"""Processes of one attempt find each other and nothing of an earlier attempt."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from pecker_fast.distributed.meeting import Meeting

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
            meeting = pool.submit(Meeting, patience)
            time.sleep(0.1)
        return meeting

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
    with pytest.raises(RuntimeError, match=f"^the environment variable {name} is not set$"):
        Meeting(PATIENCE)
