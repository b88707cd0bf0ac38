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

__all__ = ["Interrupted", "a_last_word", "saving_at_interrupt", "speaking_last"]

T = TypeVar("T")

_EXIT_CODE = 128 + signal.SIGTERM

_SAME_KEY = 1.0
"""Seconds within which a second SIGINT is torchrun's copy of the first."""


_SAVING = "saving after this iteration; Ctrl-C again ends at once"
_LIMIT = ", and torchrun ends all processes after 30 s, saved or not"

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
            os.write(2, f"\n{_SAVING if ranks.alone else _SAVING + _LIMIT}\n".encode())
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


_last_word = threading.Lock()
"""Held by who says why this process ends: the main thread, or the one that hears of a SIGTERM."""


@contextmanager
def a_last_word(who: str, reason: Callable[[], str]) -> Iterator[None]:
    """At a SIGTERM say so on stderr, with the reason, and end this process; for the main thread.

    A Python handler alone would come too late: the main thread runs none while it waits for the
    other processes. A thread of its own hears of the signal at once.

    Args:
        who: this process.
        reason: finds out why it was stopped, in a few of the 30 s that torchrun leaves.
    """
    hears, wakes = os.pipe()
    os.set_blocking(wakes, False)
    previous_wakes = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    # Python writes to the pipe for signals that have a handler only; this one has nothing to do.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    listener = threading.Thread(target=_listen, args=(hears, who, reason), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.set_wakeup_fd(previous_wakes)
        os.close(wakes)  # the listener reads the end of the pipe
        listener.join()
        os.close(hears)
        if _last_word.locked():
            _last_word.release()


@contextmanager
def speaking_last() -> Iterator[None]:
    """In the block this process says itself why it ends: after it a SIGTERM ends it silently.

    Not entered where a SIGTERM was first.
    """
    if not _last_word.acquire(blocking=False):
        threading.Event().wait()  # the other thread ends the process
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _listen(hears: int, who: str, reason: Callable[[], str]) -> None:
    while signals := os.read(hears, 64):  # one byte for each
        if signal.SIGTERM in signals and _last_word.acquire(blocking=False):
            line = f"{who}: stopped by SIGTERM: {reason()}; {_GO_ON} the last checkpoint"
            # Not through sys.stderr, whose lock the main thread may hold. On a new line, since a
            # progress bar may be on this one.
            os.write(2, f"\n{line}\n".encode())
            os._exit(_EXIT_CODE)
