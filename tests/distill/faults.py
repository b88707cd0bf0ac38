"""Faults that are planted in a process, which by themselves kill it."""

import os
import signal

import torch


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, calls=1, act=die):
    """Call `act` when `owner.name` is called for the `calls`-th time."""
    original, seen = getattr(owner, name), []

    def replacement(*args, **kwargs):
        seen.append(None)
        if len(seen) == calls:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def half_written():
    """From now on die in the first checkpoint write, with half of the file on the disk."""
    original = torch.save

    def save(state, file):
        original(state, file)
        file.flush()
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        die()

    torch.save = save
