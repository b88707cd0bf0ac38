"""What is sent between processes arrives, errors included; a single process needs none of it."""

import pytest
import torch
from processes import run_processes
from rank_jobs import broadcast_all, errors, everything, gather_and_sum, one_is_slow, one_leaves
from toys import assert_same_bits

from pecker_fast.distributed import Ranks
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
    assert ranks.any(True) and not ranks.any(False)
    ranks.check_same("a", "another model")
    ranks.wait()
    ranks.leave()
    with pytest.raises(ZeroDivisionError):
        ranks.first(lambda: 1 / 0)


@pytest.mark.parametrize("size", ["1", ""])
def test_torchrun_with_one_process_is_alone(monkeypatch, size):
    rendezvous(monkeypatch, RANK="0", WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert Ranks.join("cpu") == Ranks()


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_torchrun_sets_is_missing(monkeypatch, missing):
    values = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    rendezvous(monkeypatch, **{name: value for name, value in values.items() if name != missing})
    with pytest.raises(PeckerError, match=missing):
        Ranks.join("cpu")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WORLD_SIZE", "two"),
        *(("PECKER_FAST_TIMEOUT", text) for text in ("", "soon", "0", "nan", "1e9")),
    ],
)
def test_a_variable_that_is_no_number(monkeypatch, name, text):
    rendezvous(monkeypatch, **{"WORLD_SIZE": "2", "RANK": "0", name: text})
    with pytest.raises(PeckerError, match="did not find each other"):
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
    assert all(outcome["any"] == [True, True, False] for outcome in outcomes)


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
        assert "do not agree: rank 1 has another model than rank 0 " in outcome["differs"]
        assert "rank 2 has another configuration than rank 0 ('lr: 2');" in outcome["lr"]
        assert outcome["after"] == 1


def test_one_that_ends_is_no_hang():
    *others, _ = run_processes(one_leaves, 3)
    for rank, said in enumerate(others):
        assert said.startswith(f"rank {rank} of 3 lost the others")


def test_a_step_that_takes_too_long_is_no_hang():
    waited, _ = run_processes(one_is_slow, 2, 2.0, False, PECKER_FAST_TIMEOUT="0.5")
    assert "PECKER_FAST_TIMEOUT=0.5" in waited["heard"]


def test_unequal_work_before_a_broadcast_counts_in_no_step():
    outcomes = run_processes(one_is_slow, 2, 3.0, True, PECKER_FAST_TIMEOUT="1")
    assert outcomes == [{"heard": "", "sum": 2.0}] * 2
