"""Is the concept gone, and is the rest still there: a classifier's view of images of captions.

Four kinds of captions tell four things apart: those of the concept that the erasure was told about,
others of the concept that it never saw, those of its neighbours, and those of everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pecker_fast.evaluate.forgetting import Hits, classify

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = ["ConceptCaptions", "ConceptFigures", "Recognition"]

GONE = 0.05  # largest share of images of the concept still recognised for "is gone"
KEPT = 0.03  # largest loss of the share of all others for "is kept"

_SUMS = {
    "forget": ("forget_trained", "forget_held_back"),
    "keep": ("neighbours", "others"),
}


@dataclass(frozen=True)
class ConceptCaptions:
    """Captions to judge an erasure by; every caption may occur more than once.

    Attributes:
        class_names: of the classifier, by index.
        forget: the class that the concept is.
        override: the class in its place, or None.
        groups: (caption, the class it names) by kind: "forget_trained", which the erasure was
            told; "forget_held_back", of the concept too, which it was not; "neighbours", of similar
            classes; "others". Images are given in this order.
    """

    class_names: tuple[str, ...]
    forget: int
    override: int | None
    groups: Mapping[str, Sequence[tuple[str, int]]]

    @property
    def prompts(self) -> list[str]:
        """All captions."""
        return [caption for group in self.groups.values() for caption, _ in group]

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class that each of `prompts` names."""
        return torch.tensor([label for group in self.groups.values() for _, label in group])


@dataclass(frozen=True)
class Recognition:
    """How often a classifier sees in one model's images the class that their captions name.

    Attributes:
        parts: of each kind of captions; "override": images of the concept that are recognised as
            the class in its place, None without one.
        classes: class name -> of the captions of that class, for the classes to keep.
        sampler: how the images were drawn, in words.
        seed: of the noise, or None where the images came from elsewhere.
    """

    parts: Mapping[str, Hits | None]
    classes: Mapping[str, Hits] = field(default_factory=dict)
    sampler: str = "given images"
    seed: int | None = None

    def __getitem__(self, part: str) -> Hits:
        """Hits of a kind of captions, or of all that are to be forgotten ("forget") or kept."""
        first, *more = (self.parts[name] or Hits(0, 0) for name in _SUMS.get(part, (part,)))
        return sum(more, first)

    @classmethod
    def measure(
        cls,
        images: Tensor,
        captions: ConceptCaptions,
        classifier: Classifier,
        sampler: str = "given images",
        seed: int | None = None,
    ) -> Recognition:
        """Classify one image per caption.

        Args:
            images: (N, C, H, W) float32 in [-1, 1], as the classifier takes them, one for each of
                `captions.prompts`.
            captions: what was asked for.
            classifier: the judge.
            sampler: how the images were drawn; recorded.
            seed: of their noise; recorded.

        Raises:
            PeckerError: images that are not finite.
        """
        labels = captions.labels
        predicted = classify(classifier, images)[0].argmax(dim=1)
        right = predicted == labels
        counts = [len(group) for group in captions.groups.values()]
        told, untold, near, far = map(Hits.of, torch.split(right, counts))
        override = None
        if captions.override is not None:
            override = Hits.of(predicted[labels == captions.forget] == captions.override)
        parts = {"forget_trained": told, "forget_held_back": untold, "override": override,
                 "neighbours": near, "others": far}  # fmt: skip
        classes = {
            captions.class_names[index]: Hits.of(right[labels == index])
            for index in sorted(set(labels.tolist()) - {captions.forget})
        }
        return cls(parts, classes, sampler, seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        facts = asdict(self)
        return {**facts.pop("parts"), **facts}


@dataclass(frozen=True)
class ConceptFigures:
    """One erasure: the original model's images and the erased model's, for the same captions.

    Attributes:
        captions: what was asked for.
        before: the original model.
        after: the erased model.
    """

    captions: ConceptCaptions
    before: Recognition
    after: Recognition

    @property
    def name(self) -> str:
        """Name of the class that was to be forgotten."""
        return self.captions.class_names[self.captions.forget]

    @property
    def override_name(self) -> str | None:
        """Name of the class in its place, or None."""
        override = self.captions.override
        return None if override is None else self.captions.class_names[override]

    @property
    def gone(self) -> bool:
        """At most 5 % of the concept's images are recognised, of told and untold captions each."""
        return all((self.after[part].share or 0) <= GONE for part in _SUMS["forget"])

    @property
    def kept(self) -> bool:
        """All other captions together lost at most .03."""
        lost = _difference(self.after["keep"], self.before["keep"]) or 0
        # A loss of .03 exactly is one of .0300000001 after the subtraction.
        return lost <= KEPT + 1e-9

    def rows(self) -> list[tuple[str, Hits, Hits]]:
        """What is asked for, before, after; in the order of the report."""
        asked, name = "recognised as what was asked for", self.name
        titles = {
            "forget_trained": f"{name}, captions the erasure was told: recognised as {name}",
            "forget_held_back": f"{name}, captions held back: recognised as {name}",
            "override": f"{name}: recognised as {self.override_name} instead",
            "neighbours": f"Neighbours: {asked}",
            "others": f"Unrelated: {asked}",
            "keep": f"Both together: {asked}",
        }
        rows = [(title, self.before[part], self.after[part]) for part, title in titles.items()]
        return [row for row in rows if row[1].count or row[2].count]

    def class_rows(self) -> list[tuple[str, Hits, Hits]]:
        """The same for each class to keep."""
        before, after = self.before.classes, self.after.classes
        return [(name, before.get(name, Hits(0, 0)), hits) for name, hits in after.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON: shares and differences first, then the counts."""
        shares: dict[str, float | None] = {}
        for part in ("forget_trained", "forget_held_back", "override", "neighbours", "others",
                     "keep"):  # fmt: skip
            before, after = self.before[part], self.after[part]
            shares[f"{part}_before"], shares[f"{part}_after"] = before.share, after.share
            shares[f"{part}_difference"] = _difference(before, after)
        return {
            **shares,
            "gone": self.gone,
            "kept": self.kept,
            "class": self.name,
            "override_class": self.override_name,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


def _difference(before: Hits, after: Hits) -> float | None:
    if before.share is None or after.share is None:
        return None
    return after.share - before.share
