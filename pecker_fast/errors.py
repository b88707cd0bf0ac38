"""The exceptions that the command line shows as one line."""

from __future__ import annotations

__all__ = ["FrozenChangedError", "PeckerError"]


class PeckerError(ValueError):
    """Bad input. The message is one line: the thing, what was expected, what was found, the remedy.

    The command line prints the message and exits with code 2.
    """


class FrozenChangedError(PeckerError):
    """Parameters that were to stay as they are have changed. The message names them.

    The command line prints the message and exits with code 3.
    """
