"""The exceptions that the command line shows as one line, and what makes text safe to show."""

from __future__ import annotations

__all__ = [
    "FrozenChangedError",
    "PeckerError",
    "PeckerRuntimeError",
    "PeckerTypeError",
    "printable",
]

_LONGEST = 600
"""Characters of a message: room for two paths and a remedy."""
_CUT = " ... "


def printable(text: object, limit: int | None = _LONGEST) -> str:
    """Text from a file, a name or a path as it may be shown on a terminal: one line, bounded.

    White space of any kind becomes a space, each. What else has no glyph of its own is written as a
    Python escape: control characters and so escape sequences, marks that turn the direction of
    writing, bytes of a path that are no UTF-8. Doing it again changes nothing.

    Args:
        text: Anything with a `str`.
        limit: Characters at most; of a longer text the middle is left out, since messages begin
            with the thing and end with the remedy. None = all of it.
    """
    line = str(text)
    if limit is not None and len(line) > limit:  # before the escapes: it may be gigabytes
        line = f"{line[:limit]}\n{line[-limit:]}"
    if not line.isprintable():
        line = "".join(map(_shown, line))
    if limit is None or len(line) <= limit:
        return line
    head = (limit - len(_CUT)) * 2 // 3
    return line[:head] + _CUT + line[len(line) - (limit - len(_CUT) - head) :]


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else ascii(character)[1:-1]


class PeckerError(ValueError):
    """Bad input. The message is one line: the thing, what was expected, what was found, the remedy.

    The command line prints the message and exits with code 2.
    """

    def __init__(self, message: object) -> None:
        """Keep the message, safe to show and of a few hundred characters whatever goes in."""
        super().__init__(" ".join(printable(message).split()))


class PeckerRuntimeError(PeckerError, RuntimeError):
    """Bad input where torch raises a RuntimeError, for callers that catch that."""


class PeckerTypeError(PeckerError, TypeError):
    """Bad input where torch raises a TypeError, for callers that catch that."""


class FrozenChangedError(PeckerError):
    """Parameters that were to stay as they are have changed. The message names them.

    The command line prints the message and exits with code 3.
    """
