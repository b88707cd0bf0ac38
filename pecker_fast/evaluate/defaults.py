"""What options mean and what they are where nothing is said; light, for the command line."""

from __future__ import annotations

__all__ = [
    "BATCH_SIZE",
    "JUDGED_PER_CLASS",
    "PER_CLASS",
    "TEACHER_STEPS",
    "TRUSTED",
    "default_steps",
]

TEACHER_STEPS = 50
PER_CLASS = 10
JUDGED_PER_CLASS = 500
BATCH_SIZE = 250
TRUSTED = "trusted:"
"""Before the name of a file whose code is to be run."""


def default_steps(kind: str, method: str | None) -> int:
    """Steps of a model of this kind, drawn by this method; None: the kind's own."""
    one = kind == "generator" if method is None else method == "one-step"
    return 1 if one else TEACHER_STEPS
