"""Run by test_sigkill.py: the same training run, killed with SIGKILL at one point after another.

    python killed_run.py DIRECTORY POINT [POINT ...]       POINT: a name below, or seconds

Every run is a process of its own, forked before torch has started any thread, and works in
DIRECTORY, so that it resumes what the one before left. Prints a line for each.
"""

import os
import signal
import sys
import time

import torch
from faults import before, die, half_written
from toys import toy_objective

from pecker_fast.distill import PeckerTrainer, RunDirectory
from pecker_fast.runs.learner import Learner

SETTINGS = {
    "iterations": 24,
    "logging.checkpoint_every": 4,
    "mask.refresh_every": 6,
    "optimizer.beta1": 0.9,
    "optimizer.weight_decay": 0.1,
    "mask.apply": "both",
}


def around_renaming(after):
    """Die before or after the first checkpoint gets its name; masks are renamed as well."""
    original = os.replace

    def replace(source, target):
        last = "checkpoint" in str(target)
        if last and not after:
            die()
        original(source, target)
        if last:
            die()

    os.replace = replace


POINTS = {
    "in the pseudo-score step": lambda: before(Learner, "step", 11),
    "between the two steps": lambda: before(Learner, "step", 12),
    "in a new mask": lambda: before(Learner, "set_mask"),
    "half a checkpoint": half_written,
    "in a flush": lambda: before(os, "fsync"),
    "before it is renamed": lambda: around_renaming(after=False),
    "after it was renamed": lambda: around_renaming(after=True),
    "before the old one goes": lambda: before(os, "unlink"),
    "never": lambda: None,
}


def run(directory, point, ready):
    with RunDirectory(directory) as place:
        trainer = PeckerTrainer(toy_objective(SETTINGS), run_directory=place)
        print(f"{point}: from {trainer.iteration}", flush=True)
        POINTS[point]()
        os.write(ready, b"1")
        for _ in trainer.run():
            pass
        check = trainer.verify_frozen()
        print(f"done: {check.frozen_changed} of {check.frozen} frozen changed", flush=True)


def main(directory, *points):
    # The first optimizer imports a second's worth of torch; the children inherit it.
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    for point in points:
        # A number is a delay: the kill comes from outside, wherever the run happens to be.
        delay = None if point in POINTS else float(point)
        started, ready = os.pipe()
        child = os.fork()
        if child == 0:
            run(directory, "never" if delay is not None else point, ready)
            os._exit(0)
        if delay is not None:
            os.read(started, 1)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
        print(f"{point}: {ended} {os.waitstatus_to_exitcode(status)}", flush=True)


main(*sys.argv[1:])
