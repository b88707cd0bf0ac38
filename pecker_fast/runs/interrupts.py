"""Ctrl-C and SIGTERM in a run: the step is finished and saved."""

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

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a user's; Slurm's, Kubernetes' and torchrun's
_GO_ON = "start the same command again to go on from"


class Interrupted(KeyboardInterrupt):
    """A signal in a run; the message says what was saved."""


def saving_at_interrupt(
    steps: Iterator[T], iteration: Callable[[], int], save: Callable[[], None], ranks: Ranks
) -> Iterator[T]:
    """The same steps, until Ctrl-C or SIGTERM: then the step is finished and saved.

    A second signal ends at once. Several processes stop after the same step, whichever of them has
    got the signal; torchrun hands its own on to all, and waits 30 seconds for them. `save` writes a
    checkpoint, between two steps, on all processes.

    Raises:
        Interrupted: after the checkpoint was written; or at a second signal.
    """
    if threading.current_thread() is not threading.main_thread():  # only there signals arrive
        yield from steps
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise Interrupted(f"interrupted; {_GO_ON} the last checkpoint")
        asked = True
        if ranks.is_first:
            # Not through sys.stderr, which may be in use. On a new line, beside a progress bar.
            os.write(2, b"\nsaving after this iteration; Ctrl-C again ends at once\n")

    previous = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        for step in steps:
            yield step
            if ranks.any(asked):
                save()
                raise Interrupted(f"interrupted; iteration {iteration()} is saved; {_GO_ON} there")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
