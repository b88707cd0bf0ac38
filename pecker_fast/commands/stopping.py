"""Runs that are stopped from outside: Ctrl-C saves first; a process of several says what it was.

`torchrun` sends SIGTERM to every process of a run as soon as one of them has ended, a tenth of a
second after it: often earlier than the process itself finds out that it waits in vain. Ctrl-C in a
terminal reaches each process twice, from the terminal and from `torchrun`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import FrameType

    from pecker_fast.distributed import Ranks

__all__ = ["Interrupted", "a_last_word", "saving_at_interrupt", "without_last_word"]

T = TypeVar("T")

_EXIT_CODE = 128 + signal.SIGTERM

_SAME_KEY = 1.0
"""Seconds within which a second SIGINT is torchrun's copy of the first."""


_GO_ON = "start the same command again to go on from"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; the message says what was saved."""


def saving_at_interrupt(
    steps: Iterator[T], iteration: Callable[[], int], save: Callable[[], None], ranks: Ranks
) -> Iterator[T]:
    """The same steps, until Ctrl-C: then the step is finished and saved. A second one ends at once.

    Args:
        steps: a training run, the same on all processes.
        iteration: how many are done.
        save: writes a checkpoint, between two steps.
        ranks: the processes; where one is interrupted, all stop after the same step.

    Raises:
        Interrupted: after the checkpoint was written, on all processes; or at a second Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():  # only there signals arrive
        yield from steps
        return
    asked: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and (ranks.alone or time.monotonic() - asked[0] > _SAME_KEY):
            raise Interrupted(f"interrupted; {_GO_ON} the last checkpoint")
        if not asked and ranks.is_first:
            # Not through sys.stderr, which may be in use. On a new line, beside a progress bar.
            os.write(2, b"\nsaving after this iteration; Ctrl-C again ends at once\n")
        asked.append(time.monotonic())

    previous = signal.signal(signal.SIGINT, ask)
    try:
        for step in steps:
            yield step
            if ranks.any(bool(asked)):
                save()
                raise Interrupted(f"interrupted; iteration {iteration()} is saved; {_GO_ON} there")
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def a_last_word(text: str) -> Iterator[None]:
    """At a SIGTERM write `text` to stderr and end this process; for the main thread.

    A Python handler alone would come too late: the main thread runs none while it waits for the
    other processes. A thread of its own hears of the signal at once.
    """
    hears, wakes = os.pipe()
    os.set_blocking(wakes, False)
    previous_wakes = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    # Python writes to the pipe for signals that have a handler only; this one has nothing to do.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    listener = threading.Thread(target=_listen, args=(hears, text), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.set_wakeup_fd(previous_wakes)
        os.close(wakes)  # the listener reads the end of the pipe
        listener.join()
        os.close(hears)


def without_last_word() -> None:
    """This process has said why it ends: a SIGTERM ends it silently from now on."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _listen(hears: int, text: str) -> None:
    while signals := os.read(hears, 64):  # one byte for each
        if signal.SIGTERM in signals:
            # Not through sys.stderr, whose lock the main thread may hold. On a new line, since a
            # progress bar may be on this one.
            os.write(2, f"\n{text}\n".encode())
            os._exit(_EXIT_CODE)
