"""How far a share that was counted may lie from the true one."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Share"]

_Z = 1.959963984540054  # of the normal distribution: 95 % lie within


@dataclass(frozen=True)
class Share:
    """A share of images, counted, with its 95 % interval.

    Attributes:
        count: how many of them.
        total: of how many.
    """

    count: int
    total: int

    @classmethod
    def of(cls, share: float, total: int) -> Share:
        """The count behind a share of `total`."""
        return cls(round(share * total), total)

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of Wilson (1927), which also holds for 0 of n."""
        n, z2 = self.total, _Z**2
        middle = (self.count + z2 / 2) / (n + z2)
        half = _Z / (n + z2) * math.sqrt(self.count * (n - self.count) / n + z2 / 4)
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def __str__(self) -> str:
        """In words, e.g. "1.5% (0.6 to 3.5)"."""
        low, high = self.interval
        return f"{100 * self.value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
