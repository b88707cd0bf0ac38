"""What is sent between processes arrives, errors included; a single process needs none of it."""

from datetime import timedelta

import pytest
import torch
from processes import run_processes
from rank_jobs import (
    broadcast_all,
    errors,
    everything,
    gather_and_sum,
    one_stops,
    the_first_is_slow,
)
from toys import assert_same_bits

from pecker_fast.distributed import Ranks
from pecker_fast.distributed import ranks as ranks_module
from pecker_fast.distributed.ranks import TIMEOUT_VARIABLE
from pecker_fast.errors import PeckerError


def rendezvous(monkeypatch, **values):
    """The variables that torchrun sets, and no others of them."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64])
def test_rows_cover_everything_once_and_evenly(size):
    for total in (0, 1, 2, 3, size - 1, size, size + 1, 100, 1009):
        parts = [range(total)[Ranks(rank, size).rows(total)] for rank in range(size)]
        assert [row for part in parts for row in part] == list(range(total))
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_without_torchrun_a_process_is_alone(monkeypatch):
    rendezvous(monkeypatch)
    ranks = Ranks.join("cpu")
    assert (ranks.rank, ranks.size, ranks.is_first, ranks.alone) == (0, 1, True, True)
    assert not torch.distributed.is_initialized()
    value = everything()
    assert ranks.broadcast(value) is value
    assert ranks.first(lambda: value) is value
    rows = torch.arange(5)
    assert ranks.gather(rows, 5) is rows
    ones = torch.ones(2)
    assert ranks.sum_(ones) is ones and ones.tolist() == [1, 1]
    assert ranks.check_same("a", "another model") is ranks.wait() is ranks.leave() is None
    with pytest.raises(ZeroDivisionError):
        ranks.first(lambda: 1 / 0)


def test_torchrun_with_one_process_is_alone(monkeypatch):
    rendezvous(monkeypatch, RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert Ranks.join("cpu") == Ranks()


def test_processes_that_do_not_find_each_other(monkeypatch):
    rendezvous(monkeypatch, WORLD_SIZE="2", RANK="0")
    with pytest.raises(PeckerError, match=r"MASTER_ADDR is not set: .*; start the processes with"):
        Ranks.join("cpu")
    monkeypatch.setattr(ranks_module, "STARTING", timedelta(seconds=0.2))
    rendezvous(monkeypatch, WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    with pytest.raises(
        PeckerError,
        match=r"did not find each other \(nobody answered at 127.0.0.1:1 in 0 s: .*\); ",
    ):
        Ranks.join("cpu")


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_time_limit_that_is_none(monkeypatch, text):
    rendezvous(monkeypatch, WORLD_SIZE="2", RANK="0")
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    with pytest.raises(PeckerError, match=f"^PECKER_FAST_TIMEOUT={text}: expected seconds from"):
        Ranks.join("cpu")


@pytest.fixture
def launch(monkeypatch):
    """Begins a launch by torchrun, whose store all of its attempts see."""
    stores = []

    def begin():
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        stores.append(store)
        rendezvous(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    return begin


def test_what_is_done_once_per_launch(monkeypatch, launch):
    done = []

    def fail():
        raise ZeroDivisionError

    launch()
    with pytest.raises(ZeroDivisionError):
        Ranks().once("a", fail)  # counts for nothing
    for name in ("a", "b", "a", "b"):
        Ranks().once(name, lambda name=name: done.append(name))
    assert done == ["a", "b"]
    launch()
    Ranks().once("a", lambda: done.append("again"))
    assert done == ["a", "b", "again"]
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    for _ in range(2):
        Ranks().once("a", lambda: done.append("alone"))
    assert done == ["a", "b", "again", "alone", "alone"]


@pytest.mark.parametrize("chunk", [2**28, 100], ids=["at once", "in pieces"])
def test_broadcast(chunk):
    for received in run_processes(broadcast_all, 3, chunk):
        assert_same_bits(received, everything())


def test_gather_and_sum():
    totals = [0, 1, 2, 3, 7, 8]
    outcomes = run_processes(gather_and_sum, 3, totals)
    for total, (rows, images) in zip(totals, outcomes[0]["gathered"], strict=True):
        assert rows.tolist() == list(range(total))
        assert images.dtype == torch.uint8 and images.shape == (total, 2, 3)
        assert images[:, 1, 2].tolist() == list(range(total))
    for outcome in outcomes[1:]:
        assert outcome["gathered"] == [[None, None]] * len(totals)
    assert all(outcome["sum"].tolist() == [111.0] * 3 for outcome in outcomes)


def test_an_error_on_the_first_reaches_all():
    outcomes = run_processes(errors, 3)
    assert {outcome["foreseen"] for outcome in outcomes} == {"the disk is full; free some space"}
    assert outcomes[0]["unforeseen"] == "[Errno 13] Permission denied: 'run/mask.safetensors'"
    for outcome in outcomes[1:]:
        assert outcome["unforeseen"] == (
            "rank 0 has stopped: PermissionError: "
            "[Errno 13] Permission denied: 'run/mask.safetensors'"
        )
    assert [outcome["ran"] for outcome in outcomes] == [1, 0, 0]
    for outcome in outcomes:
        assert outcome["value"] == {"value": 5}
        assert outcome["same"] == ""
        assert "do not agree: rank 1 has another model than rank 0;" in outcome["differs"]
        assert outcome["after"] == 1


def test_one_that_stops_is_named_on_the_others():
    *others, _ = run_processes(one_stops, 3)
    said = "rank 2 has ended before the others; start the same command again to go on from the "
    assert others == [said + "last checkpoint"] * 2


def test_unequal_work_before_a_broadcast_is_no_hang(monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.5")
    assert run_processes(the_first_is_slow, 2, 1.5) == [2.0, 2.0]
