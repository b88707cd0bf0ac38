"""Where a run does not fit into memory: which of its settings need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.machine import out_of_memory
from pecker_fast.runs.config import RunConfig

__all__ = ["frugal_settings", "naming_settings"]

# What takes the least memory, of the settings that a configuration may have: first what changes no
# result.
_FRUGAL = (
    ("micro_batch", 1),
    ("recompute", True),
    ("optimizer.release_grads", True),
    ("precision", "bf16"),
    ("precision", "autocast"),  # where there are no weights of half precision
    ("mask.apply", "both"),
)


def frugal_settings(config: RunConfig) -> dict[str, Any]:
    """What would take less memory, of the settings that this configuration has otherwise."""
    now, found = config.flat(), {}
    for key, value in _FRUGAL:
        if key in now and now[key] not in (value, "bf16") and key not in found:
            with suppress(PeckerError):  # it does not go with what else is set
                config.changed({key: value})
                found[key] = value
    return found


@contextmanager
def naming_settings(config: RunConfig) -> Iterator[None]:
    """Say in one line that memory ran out in the block, and what to set.

    Raises:
        PeckerError: It did, on the CPU or a GPU.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (found := out_of_memory(error)) is None:
            raise
        now = config.flat()
        sizes = [key for key in ("batch_size", "saliency.batch_size") if now.get(key, 1) > 1]
        lower = " and ".join(f"{key} (now {now[key]})" for key in sizes)
        other = ", ".join(f"{k}={str(v).lower()}" for k, v in frugal_settings(config).items())
        ways = [f"{verb} {what}" for verb, what in (("lower", lower), ("set", other)) if what]
        remedy = "; or ".join(ways) or "use a machine with more"
        raise PeckerError(f"{found}; {remedy}") from error
