"""`pecker-fast` for torchrun, with a fault in one process of the first attempt.

torchrun ... fault_main.py RANK FAULT ARGUMENT...        FAULT: a name of FAULTS
"""

import os
import signal
import sys
import time

from faults import before, half_written

from pecker_fast import cli
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.learner import Learner


def end_torchrun():
    """As Slurm and Kubernetes do; it has handed the signal on when this returns."""
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(3)


FAULTS = {
    # In the third iteration, between its two optimizer steps.
    "killed in a step": lambda: before(Learner, "step", 6),
    "killed in a checkpoint": lambda: before(RunDirectory, "save", 2, half_written),
    "torchrun ended": lambda: before(Learner, "step", 6, end_torchrun),
    "another option": lambda: arguments.append("--densty"),
}

rank, fault, *arguments = sys.argv[1:]
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
    FAULTS[fault]()
sys.exit(cli.main(arguments))
