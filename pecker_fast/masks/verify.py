"""The proof that frozen parameters did not move: compare them bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["FrozenCheck", "check_frozen"]

_SAME_SIZE_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class FrozenCheck:
    """Counts of entries before and after a run.

    Attributes:
        frozen: entries outside the mask.
        frozen_changed: those whose bits differ; must be 0.
        salient: entries inside the mask.
        salient_changed: those whose bits differ.
    """

    frozen: int
    frozen_changed: int
    salient: int
    salient_changed: int


def check_frozen(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], salient: Mapping[str, Tensor]
) -> FrozenCheck:
    """Compare two sets of parameters bit by bit (0.0 and -0.0 differ, equal NaN do not).

    Args:
        before: parameter name -> values at the start.
        after: parameter name -> values at the end, same shapes and dtypes.
        salient: parameter name -> bool, True inside the mask. A parameter without an entry is
            frozen as a whole.

    Raises:
        PeckerError: the two sets differ in names, shapes or dtypes.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise PeckerError(f"frozen check: parameter {odd!r} is in one of the two models only")
    counts = [0, 0, 0, 0]
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            raise PeckerError(
                f"frozen check: parameter {name!r} was {tuple(old.shape)} {old.dtype}, "
                f"is {tuple(new.shape)} {new.dtype}"
            )
        changed = _bits(old) != _bits(new)
        inside = salient.get(name)
        if inside is None:
            inside = torch.zeros_like(changed)
        inside = inside.cpu()
        counts[0] += int((~inside).sum())
        counts[1] += int((changed & ~inside).sum())
        counts[2] += int(inside.sum())
        counts[3] += int((changed & inside).sum())
    return FrozenCheck(*counts)


def _bits(value: Tensor) -> Tensor:
    integer = _SAME_SIZE_INTEGER[value.element_size()]
    return value.detach().cpu().contiguous().view(integer)
