"""The command line in several processes of which one fails in a given way; importable by name."""

import os
import resource
import signal
import sys
import time

import torch

from pecker_fast import cli
from pecker_fast.runs import checkpoint
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


def send(number):
    """Send this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def in_a_step(act):
    """Act in the middle of the third iteration: between its two optimizer steps."""
    return lambda: before(Learner, "step", 6, act)


def in_the_second_checkpoint(act):
    """Act where the second checkpoint begins to be written."""
    return lambda: before(checkpoint.RunDirectory, "save", 2, act)


def half_a_checkpoint():
    """From now on this process dies in a checkpoint, with half of the file on the disk."""
    original = torch.save

    def save(state, file):
        original(state, file)
        file.flush()
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.torch.save = save


def full_disk():
    """From now on write() fails in the kernel beyond 20 kB, as on a full disk."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


FAULTS = {
    "killed in a step": in_a_step(send(signal.SIGKILL)),
    "stopped in a step": in_a_step(send(signal.SIGSTOP)),
    "interrupted in a step": in_a_step(send(signal.SIGINT)),
    "out of memory": in_a_step(out_of_memory),
    "killed in a checkpoint": in_the_second_checkpoint(half_a_checkpoint),
    "stopped in a checkpoint": in_the_second_checkpoint(send(signal.SIGSTOP)),
    "disk full": in_the_second_checkpoint(full_disk),
    "waits for ever": in_a_step(lambda: time.sleep(600)),
}


def command(arguments, rank, size, port, said, fault, variables):
    """`pecker-fast ARGUMENTS` as torchrun would start it; what it says goes to the file `said`."""
    with open(said, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **variables,
    )
    if fault is not None:
        FAULTS[fault]()
    sys.exit(cli.main(arguments))
