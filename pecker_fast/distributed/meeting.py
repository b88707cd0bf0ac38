"""Where the processes of a run find each other: a store that holds nothing of an earlier attempt.

torchrun keeps one store for all attempts of a run (`--max-restarts`), and what the processes of the
last attempt wrote there, their addresses above all, would be read by those of the next. Its count
of restarts is no help: with several machines each counts for itself.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

__all__ = ["Meeting", "launch_store"]

_POLL = 0.02
"""Seconds between two looks at who has come."""


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
            RuntimeError: They do not come, or torchrun's variables are not set.
            ValueError: One of the variables is no number.
        """
        self._host, self._port = _variable("MASTER_ADDR"), int(_variable("MASTER_PORT"))
        self.rank, self.size = int(_variable("RANK")), int(_variable("WORLD_SIZE"))
        of_launcher = _launcher_keeps_the_store()
        self.holder = "torchrun on the first machine" if of_launcher else "rank 0"
        self.held_here = self.rank == 0 and not of_launcher
        store = self._connect(patience)
        token = _agree(store, self.rank, self.size, patience) if of_launcher else "only"
        self._prefix = f"pecker-fast/{token}"
        self.store = _prefixed(f"{self._prefix}/torch", store)

    def another_connection(self) -> Any:
        """A store of its own connection: torch may wait in the other one for minutes."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self._host, self._port, is_master=False, wait_for_workers=False
        )
        return _prefixed(f"{self._prefix}/signs", store)

    def _connect(self, patience: timedelta) -> Any:
        return dist.TCPStore(  # type: ignore[attr-defined]
            self._host,
            self._port,
            self.size,
            is_master=self.held_here,
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,
        )


def launch_store() -> Any:
    """The part of torchrun's store in which all attempts of this launch write; None without it.

    Raises:
        RuntimeError: The store cannot be reached, or torchrun's variables are not set.
    """
    if not _launcher_keeps_the_store():
        return None
    host, port = _variable("MASTER_ADDR"), int(_variable("MASTER_PORT"))
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, wait_for_workers=False
    )
    return _prefixed("pecker-fast/launch", store)


def _launcher_keeps_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _agree(store: Any, rank: int, size: int, patience: timedelta) -> str:
    """A word that is new, from the first process to all others.

    Each asks the first under a name of its own, which is new as well, so that an answer cannot be
    an old one; the first answers whatever it finds, until all have thanked for the new word.
    """
    place = _prefixed("pecker-fast/meeting", store)
    own = uuid.uuid4().hex
    until = time.monotonic() + patience.total_seconds()
    if rank:
        place.set(f"asks {rank}", own)
        token: str = place.get(f"answer {own}").decode()
        place.set(f"thanks {token} {rank}", "")
        return token
    missing, answered = set(range(1, size)), set()
    while missing:
        if time.monotonic() > until:
            late = ", ".join(map(str, sorted(missing)))
            raise RuntimeError(f"rank {late} did not come in {patience.total_seconds():.0f} s")
        for other in sorted(missing):
            if place.check([f"thanks {own} {other}"]):
                missing.remove(other)
            elif place.check([f"asks {other}"]):
                name = place.get(f"asks {other}").decode()
                if name not in answered:
                    answered.add(name)
                    place.set(f"answer {name}", own)
        time.sleep(_POLL)
    return own


def _prefixed(prefix: str, store: Any) -> Any:
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise RuntimeError(f"the environment variable {name} is not set")
    return value
