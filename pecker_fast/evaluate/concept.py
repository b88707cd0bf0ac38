"""Is the concept gone, and is the rest still there: a classifier's view of images of captions.

Four kinds of captions tell four things apart: those of the concept that the erasure was told about,
others of the concept that it never saw, those of its neighbours, and those of everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pecker_fast.evaluate.forgetting import classify, percent

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = ["ConceptCaptions", "ConceptFigures", "Hits", "Recognition"]

GONE = 0.05  # largest share of images of the concept still recognised for "is gone"
KEPT = 0.03  # largest loss of the share of all others for "is kept"


@dataclass(frozen=True)
class Hits:
    """So many of so many images."""

    hits: int
    count: int

    @classmethod
    def of(cls, hits: Tensor) -> Hits:
        """Count what is true."""
        return cls(int(hits.sum()), hits.numel())

    @property
    def share(self) -> float | None:
        """Hits of the images, or None without images."""
        return self.hits / self.count if self.count else None

    def __add__(self, other: Hits) -> Hits:
        return Hits(self.hits + other.hits, self.count + other.count)

    def __str__(self) -> str:
        return "no images" if self.share is None else percent(self.share)


@dataclass(frozen=True)
class ConceptCaptions:
    """Captions to judge an erasure by; every caption may occur more than once.

    Attributes:
        class_names: of the classifier, by index.
        forget: the class that the concept is.
        override: the class in its place, or None.
        trained: captions of the concept that the erasure was told to forget.
        held_back: captions of the concept that it was not told.
        neighbours: captions of similar classes, and the class each names.
        others: captions of all further classes, and the class each names.
    """

    class_names: tuple[str, ...]
    forget: int
    override: int | None
    trained: tuple[str, ...]
    held_back: tuple[str, ...]
    neighbours: tuple[tuple[str, int], ...]
    others: tuple[tuple[str, int], ...]

    @property
    def prompts(self) -> list[str]:
        """All captions: trained, held back, neighbours, others. Images are given in this order."""
        return [*self.trained, *self.held_back, *(c for c, _ in self.neighbours + self.others)]

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class that each of `prompts` names."""
        forgotten = [self.forget] * len(self.trained + self.held_back)
        return torch.tensor([*forgotten, *(label for _, label in self.neighbours + self.others)])

    @property
    def override_name(self) -> str | None:
        """Name of the class in the concept's place, or None."""
        return None if self.override is None else self.class_names[self.override]


@dataclass(frozen=True)
class Recognition:
    """How often a classifier sees in one model's images the class that their captions name.

    Attributes:
        forget_trained: of captions of the concept that the erasure was told.
        forget_held_back: of captions of the concept that it was not told.
        override: images of both that are recognised as the class in the concept's place; None
            without one.
        neighbours: of captions of similar classes.
        others: of captions of all further classes.
        classes: class name -> of the captions of that class, for the classes to keep.
        sampler: how the images were drawn, in words.
        seed: of the noise, or None where the images came from elsewhere.
    """

    forget_trained: Hits
    forget_held_back: Hits
    override: Hits | None
    neighbours: Hits
    others: Hits
    classes: Mapping[str, Hits] = field(default_factory=dict)
    sampler: str = "given images"
    seed: int | None = None

    @property
    def forget(self) -> Hits:
        """All captions of the concept."""
        return self.forget_trained + self.forget_held_back

    @property
    def keep(self) -> Hits:
        """All other captions."""
        return self.neighbours + self.others

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
        logits, _ = classify(classifier, images)
        predicted = logits.argmax(dim=1)
        right = predicted == labels
        parts = [captions.trained, captions.held_back, captions.neighbours, captions.others]
        trained, held_back, neighbours, others = torch.split(right, [len(part) for part in parts])
        return cls(
            forget_trained=Hits.of(trained),
            forget_held_back=Hits.of(held_back),
            override=(
                None
                if captions.override is None
                else Hits.of(predicted[labels == captions.forget].eq(captions.override))
            ),
            neighbours=Hits.of(neighbours),
            others=Hits.of(others),
            classes={
                captions.class_names[index]: Hits.of(right[labels == index])
                for index in sorted(set(labels.tolist()) - {captions.forget})
            },
            sampler=sampler,
            seed=seed,
        )


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
    def gone(self) -> bool:
        """At most 5 % of the concept's images are recognised, of told and untold captions each."""
        parts = (self.after.forget_trained, self.after.forget_held_back)
        return all((part.share or 0) <= GONE for part in parts)

    @property
    def kept(self) -> bool:
        """All other captions together lost at most .03."""
        lost = _difference(self.after.keep, self.before.keep) or 0
        # A loss of .03 exactly is one of .0300000001 after the subtraction.
        return lost <= KEPT + 1e-9

    def headline(self, concept: str) -> str:
        """One plain sentence: what became of the concept, which is called so."""
        asked, untold = self.after.forget, self.after.forget_held_back
        heard = f" ({untold.hits} of {untold.count:,} with captions the erasure was never told)"
        return (
            f"{concept} {'is gone' if self.gone else 'is not gone'}: {asked.hits} of "
            f"{asked.count:,} images asked for it are recognised as {self.name}"
            f"{heard if untold.count else ''}."
        )

    def kept_sentence(self) -> str:
        """One plain sentence: what became of the rest."""
        before, after = self.before.keep, self.after.keep
        return (
            f"The rest {'is kept' if self.kept else 'has suffered'}: {after} of {after.count:,} "
            f"images of other captions are recognised as what was asked for ({before} for the "
            "model it started from)."
        )

    def rows(self) -> list[tuple[str, Hits, Hits]]:
        """What is asked for, before, after; in the order of the report."""
        asked, name = "recognised as what was asked for", self.name
        titles = {
            "forget_trained": f"{name}, captions the erasure was told: recognised as {name}",
            "forget_held_back": f"{name}, captions held back: recognised as {name}",
            "override": f"{name}: recognised as {self.captions.override_name} instead",
            "neighbours": f"Neighbours: {asked}",
            "others": f"Unrelated: {asked}",
            "keep": f"Both together: {asked}",
        }
        rows = [(title, *self._both(part)) for part, title in titles.items()]
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
            before, after = self._both(part)
            shares[f"{part}_before"], shares[f"{part}_after"] = before.share, after.share
            shares[f"{part}_difference"] = _difference(before, after)
        return {
            **shares,
            "gone": self.gone,
            "kept": self.kept,
            "class": self.name,
            "override_class": self.captions.override_name,
            "before": asdict(self.before),
            "after": asdict(self.after),
        }

    def _both(self, part: str) -> tuple[Hits, Hits]:
        before, after = (getattr(side, part) or Hits(0, 0) for side in (self.before, self.after))
        return before, after


def _difference(before: Hits, after: Hits) -> float | None:
    if before.share is None or after.share is None:
        return None
    return after.share - before.share
