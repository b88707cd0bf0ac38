"""Signs of life: which process of a run has stopped, and why.

Sockets tell that somebody is gone, not who; and of a process that hangs, or whose machine has lost
power, they tell nothing. So each process leaves a sign of life in the store through which the
processes found each other, twice a second, and reads the signs of the others. One that ends says so
there, with its error if it had one.
"""

from __future__ import annotations

import os
import threading
import time

from pecker_fast.distributed.meeting import Meeting

__all__ = ["Watch", "explain", "farewell"]

BEAT = 0.5
"""Seconds between two signs of life."""

_SILENT = 2.0
"""Seconds without a sign after which a process counts as gone where a connection broke as well."""

_LEAST_PATIENCE = 10.0
"""Seconds without a sign after which a process counts as gone, at the least: a machine is busy."""

_GRACE = 10.0
"""Seconds in which a process should notice by itself that another has ended with an error."""

_ASK = 5.0
"""Seconds that an error message may wait to find out whom it is about."""

_FAREWELL = 2.0
"""Seconds that the last sign may take."""

_EXIT_CODE = 2

_ALIVE, _LEFT, _FAILED, _FOLLOWED = "alive ", "left", "failed ", "followed"

GO_ON = "start the same command again to go on from the last checkpoint"


class Watch:
    """Watches the other processes, from threads of its own, and tells them of this one.

    Where another gives no sign of life any more, this process is ended with one line on stderr and
    exit code 2, wherever it is: a wait inside a collective cannot be ended otherwise.
    """

    def __init__(self, meeting: Meeting, patience: float) -> None:
        """Leave the first sign of life.

        Args:
            meeting: The processes.
            patience: Seconds without a sign of life after which another counts as gone.

        Raises:
            RuntimeError: The store cannot be reached.
        """
        self._rank, self._size = meeting.rank, meeting.size
        self._holder, self._holds_store = meeting.holder, meeting.held_here
        self._patience = max(patience, _LEAST_PATIENCE)
        self._store = meeting.another_connection()
        self._keys = [str(other) for other in range(self._size)]
        self._signs = [""] * self._size  # the last of each
        self._unchanged = [0] * self._size  # readings since it came
        self._beats = 0
        self._last_sign = _LEFT
        self._ended = threading.Event()
        self._unanswered = 0  # half seconds since the store last answered
        self._store_is_gone = False
        self._names_another = False  # an error here is about another process
        self._beat()
        # Two, since the store's own time limit does not end a wait where its process is suspended.
        self._signs_thread = threading.Thread(target=self._exchange_signs, daemon=True)
        self._judge_thread = threading.Thread(target=self._judge, daemon=True)

    def start(self) -> None:
        """Watch; all processes have left their first sign of life."""
        self._signs_thread.start()
        self._judge_thread.start()

    def end(self, error: str | None = None) -> None:
        """This process ends, with an error that the others shall hear or without."""
        if self._ended.is_set():
            return
        if error is not None:
            self._last_sign = _FOLLOWED if self._names_another else _FAILED + error
        self._ended.set()
        if self._signs_thread.is_alive():
            self._signs_thread.join(_FAREWELL)  # no longer: the store may not answer
        if error is not None and self._holds_store:
            time.sleep(2 * BEAT)  # or the others could not read it any more

    def explain(self) -> str | None:
        """Who has stopped, after a connection broke or a wait ended; None where all seem well.

        Takes up to a few seconds: signs of life must be missed first.
        """
        self._names_another = True
        until = time.monotonic() + _ASK
        while True:
            for other in self._others():
                if self._signs[other].startswith(_FAILED):
                    return _has_stopped(other, self._signs[other])
            if silent := [other for other in self._others() if self._silence(other) >= _SILENT]:
                who = ", ".join(map(str, silent))
                return _is_silent(f"rank {who}", min(map(self._silence, silent)))
            if left := [other for other in self._others() if self._signs[other] == _LEFT]:
                return f"rank {left[0]} has ended before the others"
            if self._store_is_gone:
                return f"{self._holder} has ended, was killed or has crashed"
            if self._unanswered * BEAT >= _SILENT:
                return _is_silent(self._holder, self._unanswered * BEAT)
            if time.monotonic() > until:
                return None
            time.sleep(BEAT / 2)

    def _others(self) -> list[int]:
        return [other for other in range(self._size) if other != self._rank]

    def _silence(self, other: int) -> float:
        """Seconds without a sign of life; none of one that has said how it ended.

        Counted in readings: where this process was suspended, the others are not to blame.
        """
        return self._unchanged[other] * BEAT if self._signs[other].startswith(_ALIVE) else 0.0

    # ---- the threads

    def _exchange_signs(self) -> None:
        try:
            while not self._ended.wait(BEAT):
                self._beat()
                signs = [sign.decode() for sign in self._store.multi_get(self._keys)]
                self._unanswered = 0
                for other, sign in enumerate(signs):
                    same = sign == self._signs[other]
                    self._unchanged[other] = self._unchanged[other] + 1 if same else 0
                    self._signs[other] = sign
            self._store.set(str(self._rank), self._last_sign)
        except RuntimeError:
            # Its process has ended, and with it the connections that this one waits at, if any.
            self._store_is_gone = True

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(str(self._rank), f"{_ALIVE}{self._beats}")

    def _judge(self) -> None:
        """End this process where it waits for one that will never come."""
        while not self._ended.wait(BEAT) and not self._store_is_gone:
            self._unanswered += 1
            if self._unanswered * BEAT >= self._patience:
                self._stop(_is_silent(self._holder, self._unanswered * BEAT))
            for other in self._others():
                sign = self._signs[other]
                if sign.startswith(_FAILED) and self._unchanged[other] * BEAT >= _GRACE:
                    self._stop(_has_stopped(other, sign))
                if self._silence(other) >= self._patience:
                    self._stop(_is_silent(f"rank {other}", self._silence(other)))

    def _stop(self, reason: str) -> None:
        self._names_another = True
        # Not through sys.stderr, whose lock the main thread may hold. On a new line, since a
        # progress bar may be on this one.
        os.write(2, f"\npecker-fast (rank {self._rank}): {reason}; {GO_ON}\n".encode())
        self.end(reason)
        os._exit(_EXIT_CODE)


_active: list[Watch] = []
"""The watch of this process, as torch.distributed has one default group of it."""


def watch(meeting: Meeting, patience: float) -> Watch:
    """The watch of this process, which has just met the others."""
    _active.append(Watch(meeting, patience))
    return _active[-1]


def explain() -> str | None:
    """Which of the other processes has stopped, if one has; its line ends this process.

    Takes up to a few seconds.
    """
    told = _active[-1].explain() if _active else None
    if told is not None:
        farewell(told)
    return told


def farewell(error: str | None = None) -> None:
    """Tell the other processes, if there are any, that this one ends: with an error or without."""
    while _active:
        _active.pop().end(error)


def _has_stopped(rank: int, sign: str) -> str:
    return f"rank {rank} has stopped: {sign.removeprefix(_FAILED)}"


def _is_silent(who: str, seconds: float) -> str:
    return f"{who} was killed or stopped, or has crashed: no sign of life for {seconds:.0f} s"
