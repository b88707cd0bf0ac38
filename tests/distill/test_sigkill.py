"""Killed at any moment with SIGKILL and started again, a run ends with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys import assert_same_bits

from pecker_fast.distill import RunDirectory

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "killed_run.py"

CHAIN = [
    "in the pseudo-score step",
    "half a checkpoint",
    "in a flush",
    "before it is renamed",
    "after it was renamed",
    "between the two steps",
    "in a new mask",
    "before the old one goes",
    "half a checkpoint",
    "after it was renamed",
]


def killed_run(directory, *points):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), *points],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return done.stdout.splitlines()


def final_state(directory):
    """All but the seconds that it took."""
    with RunDirectory(directory) as place:
        state = place.load()
    assert state.pop("seconds") > 0
    return state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Networks, optimizers, masks and average of the run that nobody killed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    lines = killed_run(directory, "never")
    assert lines[-1] == "never: exit 0"
    assert lines[-2].startswith("done: 0 of ")
    state = final_state(directory)
    assert state["iteration"] == 24
    return state


def test_killed_at_every_kind_of_moment(tmp_path, undisturbed):
    lines = killed_run(tmp_path, *CHAIN, "never")
    assert [line for line in lines if "SIGKILL" in line] == [f"{p}: SIGKILL -9" for p in CHAIN]
    starts = [int(line.rsplit(" ", 1)[1]) for line in lines if ": from " in line]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] > 0
    assert lines[-1] == "never: exit 0"
    assert_same_bits(final_state(tmp_path), undisturbed)
    assert not list(tmp_path.glob(".*"))


def test_killed_from_outside_at_arbitrary_moments(tmp_path, undisturbed):
    delays = ["0.005", "0.02", "0.04", "0.06", "0.08", "0.1"]
    lines = killed_run(tmp_path, *delays, "never")
    assert any("SIGKILL" in line for line in lines)
    assert lines[-1] == "never: exit 0"
    assert_same_bits(final_state(tmp_path), undisturbed)
