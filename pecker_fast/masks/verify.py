"""The proof that frozen parameters did not move: compare them bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pecker_fast.errors import FrozenChangedError, PeckerError
from pecker_fast.masks.checks import few

__all__ = ["FROZEN_NAME", "FrozenCheck", "check_frozen"]

FROZEN_NAME = "frozen.json"
"""The proof beside a result: how many frozen parameters changed, compared bit by bit."""

_SAME_SIZE_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class FrozenCheck:
    """Counts of entries before and after a run."""

    frozen: int  # entries outside the mask
    frozen_changed: int  # those whose bits differ; must be 0
    salient: int  # entries inside the mask
    salient_changed: int  # those whose bits differ
    # Parameter name -> its frozen entries whose bits differ, where there are any.
    changed: Mapping[str, int] = field(default_factory=dict)
    # Of what was compared, where somebody took them: `original` and `erased` network, as a patch
    # has them, `mask` and `patch`.
    digests: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: FrozenCheck) -> FrozenCheck:
        """The same for the parameters of both."""
        return FrozenCheck(
            self.frozen + other.frozen,
            self.frozen_changed + other.frozen_changed,
            self.salient + other.salient,
            self.salient_changed + other.salient_changed,
            {**self.changed, **other.changed},
        )

    def sentence(self) -> str:
        """What was compared and what came of it."""
        return (
            f"{self.frozen:,} of {self.frozen + self.salient:,} parameters were frozen; "
            f"{self.frozen_changed:,} of them changed, compared bit by bit."
        )

    def to_dict(self) -> dict[str, Any]:
        """The counts under their names in frozen.json and report.json."""
        return {
            "frozen_parameters": self.frozen,
            "frozen_changed": self.frozen_changed,
            "frozen_changed_in": dict(self.changed),
            "salient_parameters": self.salient,
            "salient_changed": self.salient_changed,
            "digests": dict(self.digests),
        }

    def require_unchanged(self, where: object) -> None:
        """Raise unless every frozen entry has the bits that it had.

        Args:
            where: What was compared, for the message; e.g. the run directory.

        Raises:
            FrozenChangedError: Some have others; their parameters are named.
        """
        if not self.frozen_changed:
            return
        entries = "entry" if self.frozen_changed == 1 else "entries"
        raise FrozenChangedError(
            f"{where}: {self.frozen_changed:,} frozen {entries} of {few(self.changed)} changed, "
            "expected 0: a file, the disk or the memory may be damaged; start anew with --force"
        )


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
    frozen = salient_count = salient_changed = 0
    moved: dict[str, int] = {}
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
        frozen += int((~inside).sum())
        salient_count += int(inside.sum())
        salient_changed += int((changed & inside).sum())
        if outside := int((changed & ~inside).sum()):
            moved[name] = outside
    return FrozenCheck(frozen, sum(moved.values()), salient_count, salient_changed, moved)


def _bits(value: Tensor) -> Tensor:
    integer = _SAME_SIZE_INTEGER[value.element_size()]
    return value.detach().cpu().contiguous().view(integer)
