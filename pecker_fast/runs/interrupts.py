"""Ctrl-C in a run: the step is finished and saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import FrameType

    from pecker_fast.distributed import Ranks

__all__ = ["Interrupted", "saving_at_interrupt"]

T = TypeVar("T")

_GO_ON = "start the same command again to go on from"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; the message says what was saved."""


def saving_at_interrupt(
    steps: Iterator[T], iteration: Callable[[], int], save: Callable[[], None], ranks: Ranks
) -> Iterator[T]:
    """The same steps, until Ctrl-C: then the step is finished and saved. A second one ends at once.

    Several processes end at once: to stop after the same step they would have to agree in each.

    Args:
        steps: a training run.
        iteration: how many are done.
        save: writes a checkpoint, between two steps.
        ranks: the processes.

    Raises:
        Interrupted: after the checkpoint was written; or at a second Ctrl-C.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only there signals arrive
    if not ranks.alone or not is_main:
        yield from steps
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise Interrupted(f"interrupted; {_GO_ON} the last checkpoint")
        asked = True
        # Not through sys.stderr, which may be in use. On a new line, beside a progress bar.
        os.write(2, b"\nsaving after this iteration; Ctrl-C again ends at once\n")

    previous = signal.signal(signal.SIGINT, ask)
    try:
        for step in steps:
            yield step
            if asked:
                save()
                raise Interrupted(f"interrupted; iteration {iteration()} is saved; {_GO_ON} there")
    finally:
        signal.signal(signal.SIGINT, previous)
