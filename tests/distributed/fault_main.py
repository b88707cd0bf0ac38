"""`pecker-fast` for torchrun, with a fault in one process of the first attempt.

torchrun ... fault_main.py RANK FAULT ARGUMENT...        FAULT: a name of FAULTS
"""

import os
import signal
import sys
import time

import torch

from pecker_fast import cli
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.learner import Learner


def before(owner, name, calls, act):
    """Call `act` when `owner.name` is called for the `calls`-th time."""
    original, seen = getattr(owner, name), []

    def replacement(*args, **kwargs):
        seen.append(None)
        if len(seen) == calls:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def end_torchrun():
    """As Slurm and Kubernetes do; it has handed the signal on when this returns."""
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(3)


def die_in_a_file():
    """From now on this process dies in a checkpoint, with half of the file on the disk."""
    original = torch.save

    def save(state, file):
        original(state, file)
        file.flush()
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        die()

    torch.save = save


FAULTS = {
    # In the third iteration, between its two optimizer steps.
    "killed in a step": lambda: before(Learner, "step", 6, die),
    "killed in a checkpoint": lambda: before(RunDirectory, "save", 2, die_in_a_file),
    "torchrun ended": lambda: before(Learner, "step", 6, end_torchrun),
    "another option": lambda: arguments.append("--densty"),
}

rank, fault, *arguments = sys.argv[1:]
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
    FAULTS[fault]()
sys.exit(cli.main(arguments))
