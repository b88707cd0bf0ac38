"""What is said on stderr while work goes on: how far it has come, and notes.

On a terminal that is a bar; elsewhere a plain line for every tenth, since a bar would fill a log
with itself. `quiet` says nothing of either; errors and warnings go other ways.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from pecker_fast.errors import printable

__all__ = ["Progress", "each", "note", "quiet"]

T = TypeVar("T")

_PATIENCE = 10.0
"""Seconds of work that are worth a line."""
_TENTHS = 10

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """In the block neither progress nor notes are shown."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def note(text: object) -> None:
    """A line on stderr about what happens, made safe to show."""
    if not _quiet.get():
        print(printable(text, 2000), file=sys.stderr, flush=True)


class Progress:
    """How much of a piece of work is done.

    Args:
        title: of what is done; None: nothing is shown.
        total: of it; None: nobody knows, and only a terminal is told.
        initial: how much was done before.
        patience: seconds until the first plain line: what is done before goes without.

    Attributes:
        n: how much.
    """

    def __init__(
        self,
        title: str | None,
        total: int | None,
        *,
        initial: int = 0,
        patience: float = _PATIENCE,
    ) -> None:
        self.n = initial
        self._title, self._total = title, total
        self._begun, self._patience = time.monotonic(), patience
        self._about: Mapping[str, str] = {}
        self._bar: Any = None
        hidden = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
        self._shown = title is not None and not hidden and not _quiet.get()
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, desc=title)

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        before, self.n = self.n, self.n + count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and self._total:
            tenths = [_TENTHS * done // self._total for done in (before, self.n)]
            seconds = time.monotonic() - self._begun
            if tenths[1] > tenths[0] and seconds >= self._patience:
                about = "".join(f", {name} {value}" for name, value in self._about.items())
                note(f"{self._title}: {self.n:,} of {self._total:,}, {seconds:.0f} s{about}")

    def describe(self, about: Mapping[str, str]) -> None:
        """What is known of it now, by name."""
        self._about = about
        if self._bar is not None:
            self._bar.set_postfix(about)

    def close(self) -> None:
        """It is over."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def each(items: Iterable[T], title: str | None, total: int | None = None) -> Iterator[T]:
    """The items, with progress from one to the next; title and total as of `Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(title, total) as progress:
        for item in items:
            yield item
            progress.update()
