"""The one exception that bad user input raises."""

from __future__ import annotations

__all__ = ["PeckerError"]


class PeckerError(ValueError):
    """Bad input. The message is one line: the thing, what was expected, what was found, the remedy.

    The command line prints the message and exits with code 2.
    """
