"""Where a run does not fit into memory: which of its settings need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.machine import asked_bytes, free_bytes, out_of_memory
from pecker_fast.runs.config import RunConfig

__all__ = ["frugal_settings", "naming_settings"]

_FRUGAL = {
    "micro_batch": 1,
    "recompute": True,
    "optimizer.release_grads": True,
    "precision": "bf16",
    "mask.apply": "both",
}
"""What takes the least memory, of the settings that a configuration may have: first what changes
no result."""


def frugal_settings(config: RunConfig) -> dict[str, Any]:
    """What would take less memory, of the settings that this configuration has otherwise."""
    now, found = config.flat(), {}
    for key, value in _FRUGAL.items():
        if key in now and now[key] != value:
            with suppress(PeckerError):  # it does not go with what else is set
                config.changed({key: value})
                found[key] = value
    return found


@contextmanager
def naming_settings(config: RunConfig) -> Iterator[None]:
    """Say in one line that memory ran out in the block, what to set and how much can fit.

    Raises:
        PeckerError: It did, on the CPU or a GPU.
    """
    free = free_bytes()
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (found := out_of_memory(error)) is None:
            raise
        left, asked = free_bytes(), asked_bytes(error)
        share = _fitting_share(free, left, asked) if free and asked and left is not None else None
        fits = f" (at most {share:.1%} of that fits)" if share else ""
        now = config.flat()
        sizes = [key for key in ("batch_size", "saliency.batch_size") if now.get(key, 1) > 1]
        lower = [f"{key} (now {now[key]})" for key in sizes]
        other = [f"{key}={str(value).lower()}" for key, value in frugal_settings(config).items()]
        ways = [f"lower {' and '.join(lower)}{fits}"] if lower else []
        ways += [f"set {', '.join(other)}"] if other else []
        remedy = "; or ".join(ways) or "use a machine with more"
        raise PeckerError(f"{found}; {remedy}") from error


def _fitting_share(free: int, left: int, asked: int) -> float | None:
    """The largest share of the images at a time that can fit, from how far a run came.

    The run had used free - left when another allocation failed, so n images need U = free - left +
    asked or more. Whatever part of this is fixed, m images fit only if m <= n free / U: for a fixed
    part F, U <= F + n p and m p <= free - F give it, since free < F + n p.
    """
    needed = free - left + asked
    return free / needed if needed > free else None
