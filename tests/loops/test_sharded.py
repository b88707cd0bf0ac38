"""docs/loops where processes share a model: FSDP2 by hand, of Accelerate, of the Trainer."""

from pathlib import Path

import pytest
from classes import classifier
from loop_pages import saved_mask
from processes import run_processes, torchrun
from sharded_loops import learn_sharded
from tiny_language import tiny_llama

MAIN = Path(__file__).parent / "sharded_main.py"

pytestmark = pytest.mark.slow


def test_fsdp2_with_dcp(tmp_path):
    saved_mask(classifier())
    assert run_processes(learn_sharded, 2, str(tmp_path)) == [True, True]


def test_trainer_and_accelerate():
    """One after the other: most of the time goes into imports."""
    pytest.importorskip("accelerate", reason="pip install 'pecker-fast[loops]'")
    saved_mask(tiny_llama())
    done = torchrun([MAIN])
    assert done.code == 0, done.said
