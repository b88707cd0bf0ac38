"""Is what was to be forgotten gone, and is the rest still there: two models before a classifier.

A class is a prompt with a label: what is asked for is one or the other, and is judged alike. Of
images of captions four kinds are told apart: captions of the concept that the erasure was told,
others of the concept that it never saw, those of its neighbours, and those of everything else.

Verdicts rest on the bounds of 95 % intervals. Where too few images were judged to reach a bound,
the verdict is open, and the sentence says how many would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pecker_fast.evaluate.intervals import (
    Share,
    change,
    images_to_show_change,
    percent,
)

__all__ = ["Outcome", "Recognition"]

GONE = {"class": 0.02, "concept": 0.05}
"""Gone: the upper bound of the share still recognised is no higher. Of captions there are fewer."""
KEPT = 0.03
"""Kept: the bound of what the share of all others has lost is no higher."""

_PARTS = {"forget": ("forget_trained", "forget_held_back"), "keep": ("neighbours", "others")}
_ROUNDING = 1e-9  # a loss of .03 exactly is one of .0300000001 after the subtraction


@dataclass(frozen=True)
class Recognition:
    """How often a classifier sees in one model's images, or in real ones, what they should show."""

    # How many of each kind are recognised. Of a class "forget" and "keep"; of a concept
    # "forget_trained", captions that the erasure was told; "forget_held_back", of the concept too,
    # which it was not; "neighbours", of similar classes; "others". Kinds without images are left
    # out.
    groups: Mapping[str, Share]
    # Class name -> the same, for the classes to keep.
    classes: Mapping[str, Share] = field(default_factory=dict)
    # Class name -> images asked for what is to be forgotten that the classifier takes for this
    # class; empty where nobody says.
    seen_as: Mapping[str, int] = field(default_factory=dict)
    sampler: str = "given images"  # how the images were drawn, in words
    seed: int | None = None  # of the noise, or None where the images came from elsewhere

    def __getitem__(self, kind: str) -> Share | None:
        """A kind of images, or all that are to be forgotten ("forget") or kept; None without."""
        found = [self.groups[k] for k in (kind, *_PARTS.get(kind, ())) if k in self.groups]
        return sum(found[1:], found[0]) if found else None

    @classmethod
    def of(
        cls,
        predicted: Tensor,
        labels: Tensor,
        names: tuple[str, ...],
        forget: int,
        groups: Mapping[str, Tensor],
        sampler: str = "given images",
        seed: int | None = None,
    ) -> Recognition:
        """Count what a judge takes images for, (N,) int64, by groups of (N,) bool.

        -1 is none of the names, of labels and of what is seen.
        """
        right = predicted == labels
        kept = sorted(set(labels.tolist()) - {forget, -1})
        nothing, *taken = torch.bincount(
            predicted[labels == forget] + 1, minlength=len(names) + 1
        ).tolist()
        known = [*names, *(f"class {index}" for index in range(len(names), len(taken)))]
        seen_as = dict(zip(known, taken, strict=True))
        if nothing:
            seen_as["none of these"] = nothing
        return cls(
            {kind: Share.counted(right[chosen]) for kind, chosen in groups.items() if chosen.any()},
            {names[index]: Share.counted(right[labels == index]) for index in kept},
            seen_as,
            sampler,
            seed,
        )

    def taken_for(self, name: str | None) -> Share | None:
        """Images of what is to be forgotten that are taken for this class; None: nobody says."""
        if name is None or not self.seen_as:
            return None
        return Share(self.seen_as[name], sum(self.seen_as.values()))

    def to_dict(self, override: str | None) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        parts = {**self.groups, "override": self.taken_for(override)}
        return {
            **{kind: _entry(share) for kind, share in parts.items()},
            "classes": {name: _entry(share) for name, share in self.classes.items()},
            "seen_as": dict(self.seen_as),
            "sampler": self.sampler,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Outcome:
    """One erasure: the original model's images and the erased model's."""

    kind: str  # "class" or "concept"
    name: str  # of the class that was to be forgotten
    override: str | None  # of the class in its place, or None
    before: Recognition  # the original model
    after: Recognition  # the erased model
    # Real images, which no model exceeds but by luck; None where nobody measured them.
    real: Recognition | None = None
    # What another classifier recognises of what is to be forgotten, or None.
    second: Share | None = None
    # The classes to keep, in words, and whether these are several.
    others: tuple[str, bool] = ("The rest", False)

    @property
    def limit(self) -> float:
        """The share that the bound must lie below to count as gone."""
        return GONE[self.kind]

    @property
    def gone(self) -> bool | None:
        """Whether the bound of every kind of images to forget is within the limit.

        None: it may be, but too few images were judged to tell.
        """
        shares = self._forgotten
        if any(share.value >= self.limit for share in shares):
            return False
        return bool(shares and max(s.interval.high for s in shares) <= self.limit) or None

    @property
    def kept(self) -> bool | None:
        """Whether all others together lost at most .03, as a bound; None likewise."""
        before, after = self.before["keep"], self.after["keep"]
        if before is None or after is None:
            return None
        if after.value - before.value < -KEPT - _ROUNDING:
            return False
        return change(before, after).low >= -KEPT - _ROUNDING or None

    @property
    def _forgotten(self) -> list[Share]:
        kinds = ("forget", *_PARTS["forget"])
        found = [self.after.groups[kind] for kind in kinds if kind in self.after.groups]
        return found if self.second is None else [*found, self.second]

    def headline(self, what: str) -> str:
        """One plain sentence: what became of what was to be forgotten, and how sure that is."""
        seen = self.after["forget"]
        if seen is None:
            return f"{what}: no image of it was judged."
        verdicts = {True: "is gone", False: "is not gone", None: "is not shown to be gone"}
        untold, note = self.after.groups.get("forget_held_back"), ""
        if untold is not None:
            note = f", {untold.count} of {untold.total:,} with captions the erasure was never told"
        each = " of each kind of captions" if untold is not None else ""
        each += " by either judge" if self.second is not None else ""
        bound = percent(max(share.interval.high for share in self._forgotten))
        needed = ""
        if self.gone is None:
            images = max(share.images_to_stay_below(self.limit) or 0 for share in self._forgotten)
            needed = f", which at this share takes {images:,} images{each}"
        return (
            f"{what} {verdicts[self.gone]}: {seen.count:,} of {seen.total:,} images asked for it "
            f"are recognised as {self.name}{note} (95 % bound: {bound}{each}; gone: below "
            f"{100 * self.limit:g} %{needed})."
        )

    def kept_sentence(self) -> str:
        """One plain sentence: what became of the rest, and how sure that is; "" without images."""
        before, after = self.before["keep"], self.after["keep"]
        if before is None or after is None:
            return ""
        who, several = self.others
        verdicts = {
            True: "are kept" if several else "is kept",
            False: "have suffered" if several else "has suffered",
            None: "are not shown to be kept" if several else "is not shown to be kept",
        }
        sentence = (
            f"{who} {verdicts[self.kept]}: {after} of {after.total:,} images are recognised as "
            f"what was asked for, {before} of {before.total:,} of the model it started from"
        )
        if self.kept is None:
            lost = percent(max(-change(before, after).low, 0))
            needed = images_to_show_change(before, after, -KEPT)
            takes = "" if needed is None else f", which takes some {needed:,} images of each"
            sentence += f" (95 % bound of the loss: {lost}; kept: at most {100 * KEPT:g} %{takes})"
        return f"{sentence}."

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the tables."""
        columns = ("", "Original model", "Erased model")
        return columns if self.real is None else (*columns, "Real test images")

    def rows(self) -> list[tuple[str, ...]]:
        """What is asked for, and what share of it is recognised by column."""
        asked, name = "recognised as what was asked for", self.name
        titles = {
            "forget": f"{name}: recognised as {name}",
            "forget_trained": f"{name}, captions the erasure was told: recognised as {name}",
            "forget_held_back": f"{name}, captions held back: recognised as {name}",
            "override": f"{name}: recognised as {self.override} instead",
            "neighbours": f"Neighbours: {asked}",
            "others": f"Unrelated: {asked}",
            "keep": f"All others: {asked}",
        }
        split = any(kind in self.after.groups for kind in _PARTS["forget"])
        return [
            (title, *(_cell(share) for share in shares))
            for kind, title in titles.items()
            if any(shares := [self._share(seen, kind) for seen in self._columns])
            and not (split and kind == "forget")
        ]

    def class_rows(self) -> list[tuple[str, ...]]:
        """The same for each class to keep."""
        return [
            (name, *(_cell(seen.classes.get(name)) for seen in self._columns))
            for name in self.after.classes
        ]

    def seen_as_rows(self) -> list[tuple[str, ...]]:
        """What the images of the class to forget show, the most frequent first."""
        names = sorted(self.after.seen_as, key=lambda name: -self.after.seen_as[name])
        return [
            (name, *(_cell(seen.taken_for(name)) for seen in self._columns))
            for name in names
            if any(seen.seen_as.get(name) for seen in (self.before, self.after))
        ]

    @property
    def _columns(self) -> list[Recognition]:
        return [self.before, self.after, *([] if self.real is None else [self.real])]

    def _share(self, seen: Recognition, kind: str) -> Share | None:
        return seen.taken_for(self.override) if kind == "override" else seen[kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON: shares and differences first, then the counts."""
        shares: dict[str, Any] = {}
        for kind in ("forget_trained", "forget_held_back", "override", "neighbours", "others",
                     "keep"):  # fmt: skip
            before, after = (self._share(seen, kind) for seen in (self.before, self.after))
            shares[f"{kind}_before"] = None if before is None else before.value
            shares[f"{kind}_after"] = None if after is None else after.value
            difference, interval = None, None
            if before is not None and after is not None:
                difference, interval = after.value - before.value, list(change(before, after))
            shares[f"{kind}_difference"] = difference
            shares[f"{kind}_difference_interval"] = interval
        return {
            **shares,
            **self.verdicts(),
            "class": self.name,
            "override_class": self.override,
            "before": self.before.to_dict(self.override),
            "after": self.after.to_dict(self.override),
        }

    def verdicts(self) -> dict[str, Any]:
        """What report.json says of both verdicts; null: too few images were judged to tell."""
        return {
            "gone": self.gone, "gone_limit": self.limit, "kept": self.kept, "kept_limit": KEPT
        }  # fmt: skip


def _entry(share: Share | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {"hits": share.count, "count": share.total, "interval": list(share.interval)}


def _cell(share: Share | None) -> str:
    return "" if share is None else share.counts
