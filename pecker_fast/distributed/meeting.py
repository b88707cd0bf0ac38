"""Where the processes of a run find each other: a store that holds nothing of an earlier attempt.

torchrun keeps one store for all attempts of a run (`--max-restarts`), and what the processes of the
last attempt wrote there, their addresses above all, would be read by those of the next. Its count
of restarts is no help: with several machines each counts for itself.

One that fails before it comes says so there, so that the others need not wait for it in vain.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pecker_fast.errors import PeckerError
from pecker_fast.launcher import number

__all__ = ["Meeting", "launch_store", "refuse"]

_POLL = 0.02
"""Seconds between two looks at who has come."""

_KNOCK = 0.1
"""Seconds between two attempts to reach the store before anybody holds it."""

_REFUSING = timedelta(seconds=5)
"""How long a process that does not come waits for those who should hear of it."""

_REFUSED = "refused"


@dataclass(frozen=True)
class _Place:
    """What the environment says of the store and of this process."""

    host: str
    port: int
    rank: int
    size: int
    of_launcher: bool

    @classmethod
    def of_environment(cls) -> _Place:
        return cls(
            _host(),
            number("MASTER_PORT"),
            number("RANK"),
            number("WORLD_SIZE", least=1),
            _launcher_keeps_the_store(),
        )

    @property
    def held_here(self) -> bool:
        """Whether this process holds the store."""
        return self.rank == 0 and not self.of_launcher

    def connect(self, patience: timedelta) -> Any:
        """The store, as soon as somebody holds it.

        Raises:
            RuntimeError: Nobody does.
        """
        if not self.held_here:
            self._knock(patience)
        return dist.TCPStore(  # type: ignore[attr-defined]
            self.host,
            self.port,
            self.size,
            is_master=self.held_here,
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _knock(self, patience: timedelta) -> None:
        """Wait until somebody listens: torch would write lines of warnings until then."""
        until = time.monotonic() + patience.total_seconds()
        while True:
            try:
                socket.create_connection((self.host, self.port), _REFUSING.total_seconds()).close()
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"nobody answered at {self.host}:{self.port} in "
                        f"{patience.total_seconds():.0f} s: {error.strerror or error}"
                    ) from error
            time.sleep(_KNOCK)


class Meeting:
    """The processes of this attempt, and the part of the store that is theirs.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        holder: Who holds the store, for messages.
        held_here: Whether this process does.
    """

    def __init__(self, patience: timedelta) -> None:
        """Meet the others.

        Args:
            patience: How long is waited for all of them.

        Raises:
            RuntimeError: They do not come.
            PeckerError: One of them has said that it will not, the store has gone, or one of
                torchrun's variables is not set or no number.
        """
        self._place = place = _Place.of_environment()
        self.rank, self.size, self.held_here = place.rank, place.size, place.held_here
        self.holder = "torchrun on the first machine" if place.of_launcher else "rank 0"
        store = place.connect(patience)
        self._all = _prefixed("pecker-fast/meeting", store)
        token = self._agree(patience)
        _awaited.clear()
        self._prefix = f"pecker-fast/{token}"
        self.store = _prefixed(f"{self._prefix}/torch", store)

    def another_connection(self) -> Any:
        """A store of its own connection: torch may wait in the other one for minutes."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self._place.host, self._place.port, is_master=False, wait_for_workers=False
        )
        return _prefixed(f"{self._prefix}/signs", store)

    def check(self) -> None:
        """Whether the store is still there.

        Raises:
            PeckerError: It has gone with the process that held it.
        """
        self._has("")

    def _agree(self, patience: timedelta) -> str:
        """A word that is new, from the first process to all others.

        Each asks the first under a name of its own, which is new as well, so that an answer cannot
        be an old one; the first answers whatever it finds, until all have thanked for the new word.
        Then nobody can refuse any more, and it says that all are there.
        """
        until = time.monotonic() + patience.total_seconds()
        own = uuid.uuid4().hex
        if self.rank:
            self._all.set(f"asks {self.rank}", own)
            self._await(f"answer {own}", until, patience)
            token: str = self._all.get(f"answer {own}").decode()
            self._all.set(f"thanks {token} {self.rank}", "")
            self._await(f"all thanked {token}", until, patience)
            return token
        missing, answered = set(range(1, self.size)), set()
        while missing:
            self._look(until, patience, "rank " + ", ".join(map(str, sorted(missing))))
            for other in sorted(missing):
                if self._has(f"thanks {own} {other}"):
                    missing.remove(other)
                elif self._has(f"asks {other}"):
                    name = self._all.get(f"asks {other}").decode()
                    if name not in answered:
                        answered.add(name)
                        self._all.set(f"answer {name}", own)
        self._all.set(f"all thanked {own}", "")
        return own

    def _await(self, key: str, until: float, patience: timedelta) -> None:
        while not self._has(key):
            self._look(until, patience, "one of the processes")

    def _look(self, until: float, patience: timedelta, who: str) -> None:
        """Between two looks at who has come: is there still somebody to wait for."""
        if self._has(_REFUSED):
            refusal = self._all.get(_REFUSED).decode()
            _heard(self._all, self._place)
            _awaited.clear()
            raise PeckerError(f"{refusal}; when that is corrected, start all of them again")
        if time.monotonic() > until:
            raise RuntimeError(f"{who} did not come in {patience.total_seconds():.0f} s")
        time.sleep(_POLL)

    def _has(self, key: str) -> bool:
        try:
            there: bool = self._all.check([key])
        except RuntimeError as error:
            raise PeckerError(
                f"{self.holder} has ended, was killed or has crashed before the run began; when "
                "that is corrected, start all of them again"
            ) from error
        return there


_awaited = {"the others may wait for this process"}
"""Empty once all have met, or once this one has heard that they will not."""


def refuse(message: str) -> None:
    """Tell processes that may wait for this one that it does not come; a best effort of seconds.

    Args:
        message: Why, in one line.
    """
    if not _awaited:
        return
    _awaited.clear()
    with suppress(RuntimeError, PeckerError, KeyboardInterrupt):
        place = _Place.of_environment()
        if place.of_launcher and _launcher_tries_again():
            return  # all of them are started anew
        store = _prefixed("pecker-fast/meeting", place.connect(_REFUSING))
        said = f"rank {place.rank} has stopped before the run began: {message}"
        store.compare_set(_REFUSED, "", said)  # the first counts
        _heard(store, place)


def _heard(store: Any, place: _Place) -> None:
    """This process knows of a refusal; the one that holds the store stays until all do."""
    store.set(f"heard {place.rank}", "")
    if place.held_here:
        until = time.monotonic() + _REFUSING.total_seconds()
        names = [f"heard {rank}" for rank in range(place.size)]
        while not all(store.check([name]) for name in names) and time.monotonic() < until:
            time.sleep(_POLL)


def launch_store() -> Any:
    """The part of torchrun's store in which all attempts of this launch write; None without it.

    Raises:
        RuntimeError: The store cannot be reached.
        PeckerError: torchrun's variables are not set.
    """
    if not _launcher_keeps_the_store():
        return None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        _host(), number("MASTER_PORT"), is_master=False, wait_for_workers=False
    )
    return _prefixed("pecker-fast/launch", store)


def _launcher_keeps_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _launcher_tries_again() -> bool:
    """Whether torchrun on this machine starts the processes of all machines once more."""
    attempt = number("TORCHELASTIC_RESTART_COUNT", default=0)
    return attempt < number("TORCHELASTIC_MAX_RESTARTS", default=0)


def _prefixed(prefix: str, store: Any) -> Any:
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _host() -> str:
    host = os.environ.get("MASTER_ADDR")
    if not host:
        raise PeckerError(
            "the environment variable MASTER_ADDR is not set: expected the first machine's "
            "address, as torchrun sets it; start the processes with torchrun"
        )
    return host
