"""What a process of several says when it is stopped from outside.

`torchrun` sends SIGTERM to every process of a run as soon as one of them has ended, a tenth of a
second after it: often earlier than the process itself finds out that it waits in vain.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["a_last_word", "without_last_word"]

_EXIT_CODE = 128 + signal.SIGTERM


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
