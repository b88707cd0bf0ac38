"""MaskedAdamW's state through torch.distributed.checkpoint, on any number of processes."""

import pytest
import torch
from dcp_jobs import begin, carry, exchange_with_torch, go_on, load_what_does_not_fit
from oracle import bits
from processes import run_processes

CASES = [
    {},
    {"masked": False},
    {"dtype": "bfloat16"},
    {"betas": (0.0, 0.99)},
    {"betas": (0.0, 0.99), "masked": False},
    {"amsgrad": True, "release_grads": True},
]
WAYS = ["own dicts", "pair"]
# (processes, whether parameters are sharded; else each has all, as with DistributedDataParallel)
LAYOUTS = [(1, False), (2, True), (3, True)]


def assert_same(left, right, what):
    """Weights and whole states, bit for bit."""
    for name, value in right["weights"].items():
        assert torch.equal(bits(left["weights"][name]), bits(value)), f"{what}: {name}"
    assert left["state"].keys() == right["state"].keys(), what
    for key, state in right["state"].items():
        assert left["state"][key].keys() == state.keys(), f"{what}: {key}"
        for name, value in state.items():
            found = left["state"][key][name]
            assert found.dtype == value.dtype, f"{what}: {name} of {key}"
            assert torch.equal(bits(found), bits(value)), f"{what}: {name} of {key}"


def check_resumption(folder, cases, ways, first, others, steps):
    """A run that one layout saves goes on with the same bits in all the others.

    Gradients are given, so that they do not depend on the number of processes.
    """
    size, sharded = first
    begun = run_processes(begin, size, cases, ways, sharded, str(folder), steps)
    for process in begun:
        for case, ours, rank_0 in zip(cases, process, begun[0], strict=True):
            assert_same(ours["unmoved"], ours["saved"], f"{case}: saving changes nothing")
            assert_same(ours["after"], rank_0["after"], f"{case}: all processes agree")
    for size, sharded in others:
        for process in run_processes(go_on, size, cases, ways, sharded, str(folder), steps):
            for number, case in enumerate(cases):
                for way in ways:
                    what = f"{case}, {way}, on {size} (sharded: {sharded})"
                    found = process.pop(0)
                    assert_same(found["loaded"], begun[0][number]["saved"], what)
                    assert_same(found["after"], begun[0][number]["after"], what)


@pytest.mark.parametrize(
    ("layout", "cases"),
    [
        (LAYOUTS[1], CASES),
        *(pytest.param(LAYOUTS[n], CASES[n // 2 :: 2], marks=pytest.mark.slow) for n in (0, 2)),
    ],
    ids=str,
)
def test_goes_on_on_any_number_of_processes(layout, cases, tmp_path):
    """Each way from two processes to one and three, and half of the cases back from those."""
    others = [other for other in LAYOUTS if other != layout]
    check_resumption(tmp_path, cases, ["pair"], layout, others, steps=3)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    "layout", [pytest.param((2, False), marks=pytest.mark.slow), (2, True)], ids=str
)
def test_all_ways_to_save(layout, steps, tmp_path):
    """Dicts of the model and the optimizer, flat ones, whole ones; the last is read by one.

    torch.distributed.checkpoint steps an optimizer without state; this one has state.
    """
    ways = ["own dicts", "pair", "flat", "full", "from the first"]
    check_resumption(tmp_path, CASES[:2], ways, layout, [layout], steps)


@pytest.mark.parametrize("layout", [(1, False), (2, True)], ids=str)
def test_a_refreshed_mask(layout, tmp_path):
    size, sharded = layout
    ways = [*WAYS, "flat", "full"]
    for process in run_processes(carry, size, ways, sharded, str(tmp_path)):
        for way in ways:
            assert_same(process["resumed"][way], process["after"], way)
            if way == "full":  # a file has all that was saved
                assert process["heard"][way] == ""
            else:
                assert (
                    "saved after set_mask(mask, 'carry'), but entry_start is missing for"
                    in (process["heard"][way])
                )


def test_exchange_with_torch_where_parameters_are_sharded():
    for process in run_processes(exchange_with_torch, 2):
        for stage in ("taken", "back"):
            for name, value in process[stage]["ours"].items():
                # torch's vectorized loops contract multiply-adds.
                torch.testing.assert_close(
                    process[stage]["theirs"][name], value, rtol=1e-6, atol=1e-7
                )


def test_another_mask_is_refused_and_changes_nothing(tmp_path):
    for process in run_processes(load_what_does_not_fit, 2, str(tmp_path)):
        assert "construct it with the mask of the checkpoint" in process["heard"]
        assert_same(
            {**process["now"], "weights": process["before"]["weights"]}, process["changed"], "state"
        )
