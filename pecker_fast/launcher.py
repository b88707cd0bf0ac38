"""What a launcher says in the environment, torchrun or a user; read without importing torch."""

from __future__ import annotations

import os

from pecker_fast.errors import PeckerError

__all__ = ["number", "processes"]


def processes() -> int:
    """How many processes the run has: WORLD_SIZE; one where it is empty or not set.

    Raises:
        PeckerError: It is no number of processes.
    """
    return number("WORLD_SIZE", least=1, default=1)


def number(name: str, *, least: int = 0, default: int | None = None) -> int:
    """A whole number from the environment.

    Args:
        name: Of the variable.
        least: The smallest that is allowed.
        default: Where it is empty or not set. None: that is an error.

    Raises:
        PeckerError: It is none, or smaller.
    """
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < least:
        found = f"{name}={text}" if text else f"the environment variable {name} is not set"
        raise PeckerError(
            f"{found}: expected a whole number from {least}, as torchrun sets it; start the "
            "processes with torchrun"
        )
    return int(text)
