"""What the tests of training loops share, importable here and in processes of their own."""

import os
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]
_FOLDERS = [str(_TESTS / "loops"), str(_TESTS / "distributed"), str(_TESTS)]
sys.path[:0] = _FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """A folder of its own, and nothing left of what Accelerate keeps for a whole process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    if state := sys.modules.get("accelerate.state"):
        for kept in (state.AcceleratorState, state.GradientState, state.PartialState):
            kept._reset_state()
