"""How far what was counted may lie from what is true: 95 % intervals, and what they show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interval", "Share", "change", "images_to_show_change", "percent"]

Z = 1.959963984540054  # of the normal distribution: 95 % lie within


class Interval(NamedTuple):
    """Where the true value lies, with a confidence of 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A share of images, counted, with its 95 % interval."""

    count: int  # how many of them
    total: int  # of how many; at least 1 wherever a share is asked for

    @classmethod
    def of(cls, share: float, total: int) -> Share:
        """The count behind a share of `total`."""
        return cls(round(share * total), total)

    @classmethod
    def counted(cls, hits: Tensor) -> Share:
        """How many of a bool tensor of any shape are true."""
        return cls(int(hits.sum()), hits.numel())

    def __add__(self, other: Share) -> Share:
        return Share(self.count + other.count, self.total + other.total)

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.total

    @property
    def rest(self) -> Share:
        """All others."""
        return Share(self.total - self.count, self.total)

    @property
    def interval(self) -> Interval:
        """The interval of Wilson (1927), which also holds for 0 of n."""
        n, z2 = self.total, Z**2
        middle = (self.count + z2 / 2) / (n + z2)
        half = Z / (n + z2) * math.sqrt(self.count * (n - self.count) / n + z2 / 4)
        # Exactly 0 and 1 where none and all are, and not what rounding leaves.
        return Interval(
            max(middle - half, 0.0) if self.count else 0.0,
            min(middle + half, 1.0) if self.count < n else 1.0,
        )

    def images_to_stay_below(self, limit: float) -> int | None:
        """Images of which this very share would have its upper bound at `limit`.

        None where the share itself is not below it. Wilson's bound is at L where the share p lies
        z standard deviations of a true share L below L: n = z^2 L (1 - L) / (L - p)^2.
        """
        if self.value >= limit:
            return None
        return math.ceil(Z**2 * limit * (1 - limit) / (limit - self.value) ** 2)

    def __str__(self) -> str:
        """In words, e.g. "1.5 % (0.6 to 3.5)"."""
        low, high = self.interval
        return f"{percent(self.value)} ({100 * low:.1f} to {100 * high:.1f})"

    @property
    def counts(self) -> str:
        """The same with its counts, e.g. "1.5 % (0.6 to 3.5), 6 of 400"."""
        return f"{self}, {self.count:,} of {self.total:,}"


def change(before: Share, after: Share) -> Interval:
    """The interval of after - before by Newcombe (1998), from the Wilson intervals of both."""
    (low, high), (low_before, high_before) = after.interval, before.interval
    difference = after.value - before.value
    return Interval(
        difference - math.hypot(after.value - low, high_before - before.value),
        difference + math.hypot(high - after.value, before.value - low_before),
    )


def images_to_show_change(before: Share, after: Share, limit: float) -> int | None:
    """Images of each that would show after - before to be above `limit`; None: it is not.

    By the normal distribution, so it is a size and no exact count.
    """
    difference = after.value - before.value
    if difference <= limit:
        return None
    variance = sum(share.value * (1 - share.value) for share in (before, after))
    return math.ceil(Z**2 * variance / (difference - limit) ** 2)


def percent(share: float) -> str:
    """0.9731 -> '97.3 %'."""
    return f"{100 * share:.1f} %"
