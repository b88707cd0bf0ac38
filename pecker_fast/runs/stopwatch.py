"""How long a run has trained, over all its starts."""

from __future__ import annotations

import time
from types import TracebackType

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the time of the blocks that it is the context manager of.

    So what a caller does between two iterations, such as judging images, does not count. On a GPU
    it ends where the iteration was launched; what is still queued counts as soon as somebody waits
    for it within such a block.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        """Go on from `seconds`."""
        self._before = seconds
        self._begun: float | None = None

    @property
    def seconds(self) -> float:
        """So far, an open block included."""
        running = 0.0 if self._begun is None else time.monotonic() - self._begun
        return self._before + running

    def __enter__(self) -> Stopwatch:
        self._begun = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._before = self.seconds
        self._begun = None
