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

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.forgetting import classify

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = ["ConceptCaptions", "ConceptFigures", "Recognition", "Share"]

GONE = 0.05  # largest share of images of the concept still recognised for "is gone"
KEPT = 0.03  # largest loss of the share of all others for "is kept"


@dataclass(frozen=True)
class Share:
    """So many of so many images."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """The share, or None without images."""
        return self.hits / self.count if self.count else None

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.count + other.count)

    def __str__(self) -> str:
        return "no images" if self.value is None else f"{100 * self.value:.1f} %"


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

    def __post_init__(self) -> None:
        if not self.trained + self.held_back or not self.neighbours + self.others:
            raise PeckerError(
                "concept: captions of the concept and captions of other classes are both needed"
            )
        labels = [*self.labels.tolist(), self.forget if self.override is None else self.override]
        for label in labels:
            if not 0 <= label < len(self.class_names):
                raise PeckerError(
                    f"concept: class {label} is not in 0 .. {len(self.class_names) - 1}"
                )
        for caption, label in self.neighbours + self.others:
            if label == self.forget:
                raise PeckerError(
                    f"concept: the caption {caption!r} names the class to forget, "
                    f"{self.class_names[label]}; it cannot be one to keep"
                )
        if self.override == self.forget:
            raise PeckerError("concept: the override is the class to forget; choose another one")

    @property
    def prompts(self) -> list[str]:
        """All captions: trained, held back, neighbours, others. Images are given in this order."""
        kept = [caption for caption, _ in self.neighbours + self.others]
        return [*self.trained, *self.held_back, *kept]

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class that each of `prompts` names."""
        forgotten = [self.forget] * (len(self.trained) + len(self.held_back))
        kept = [label for _, label in self.neighbours + self.others]
        return torch.tensor([*forgotten, *kept])

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

    forget_trained: Share
    forget_held_back: Share
    override: Share | None
    neighbours: Share
    others: Share
    classes: Mapping[str, Share] = field(default_factory=dict)
    sampler: str = "given images"
    seed: int | None = None

    @property
    def forget(self) -> Share:
        """All captions of the concept."""
        return self.forget_trained + self.forget_held_back

    @property
    def keep(self) -> Share:
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
        progress: str | None = None,
    ) -> Recognition:
        """Classify one image per caption.

        Args:
            images: (N, C, H, W) float32 in [-1, 1], as the classifier takes them, one for each of
                `captions.prompts`.
            captions: what was asked for.
            classifier: the judge.
            sampler: how the images were drawn; recorded.
            seed: of their noise; recorded.
            progress: title of a progress bar on stderr; None for no bar.

        Raises:
            PeckerError: not one image a caption, images that are not finite, or a classifier of
                other classes.
        """
        labels = captions.labels
        if len(images) != len(labels):
            raise PeckerError(f"concept: {len(images)} images for {len(labels)} captions")
        logits, _ = classify(classifier, images, progress=progress)
        if logits.shape[1] != len(captions.class_names):
            raise PeckerError(
                f"concept: the classifier knows {logits.shape[1]} classes, the captions are of "
                f"{len(captions.class_names)}; give the classifier of these classes"
            )
        predicted = logits.argmax(dim=1)
        right = predicted == labels
        parts = [captions.trained, captions.held_back, captions.neighbours, captions.others]
        trained, held_back, neighbours, others = torch.split(right, [len(part) for part in parts])
        about_concept = predicted[: len(trained) + len(held_back)]
        return cls(
            forget_trained=_share(trained),
            forget_held_back=_share(held_back),
            override=None
            if captions.override is None
            else _share(about_concept == captions.override),
            neighbours=_share(neighbours),
            others=_share(others),
            classes={
                name: _share(right[labels == index])
                for index, name in enumerate(captions.class_names)
                if index != captions.forget and bool((labels == index).any())
            },
            sampler=sampler,
            seed=seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON: all counts."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recognition:
        """Read what `to_dict` gave, e.g. figures that ship with a pipeline.

        Raises:
            PeckerError: a key is missing or unknown.
        """
        shares = ("forget_trained", "forget_held_back", "override", "neighbours", "others")
        try:
            read: dict[str, Any] = {
                name: None if values[name] is None else Share(**values[name]) for name in shares
            }
            classes = {name: Share(**share) for name, share in values["classes"].items()}
            return cls(**{**values, **read, "classes": classes})
        except (TypeError, KeyError, AttributeError) as error:
            raise PeckerError(
                f"concept: its figures cannot be read ({error}); measure them again"
            ) from error


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
    def keep_loss(self) -> float:
        """By how much the share of all other captions' images fell."""
        return -_difference(self.before.keep, self.after.keep)

    @property
    def gone(self) -> bool:
        """At most 5 % of the concept's images are recognised, of told and untold captions each."""
        shares = (self.after.forget_trained.value, self.after.forget_held_back.value)
        return all(share is None or share <= GONE for share in shares)

    @property
    def kept(self) -> bool:
        """All other captions together lost at most .03."""
        # A loss of .03 exactly is one of .0300000001 after the subtraction.
        return self.keep_loss <= KEPT + 1e-9

    def rows(self) -> list[tuple[str, Share, Share]]:
        """What is asked for, before, after; in the order of the report."""
        before, after = self.before, self.after
        asked = "recognised as what was asked for"
        rows = [
            (
                f"{self.name}, captions the erasure was told: recognised as {self.name}",
                before.forget_trained,
                after.forget_trained,
            ),
            (
                f"{self.name}, captions held back: recognised as {self.name}",
                before.forget_held_back,
                after.forget_held_back,
            ),
        ]
        if before.override is not None and after.override is not None:
            name = f"{self.name}: recognised as {self.captions.override_name} instead"
            rows.append((name, before.override, after.override))
        rows += [
            (f"Neighbours: {asked}", before.neighbours, after.neighbours),
            (f"Unrelated: {asked}", before.others, after.others),
            (f"Both together: {asked}", before.keep, after.keep),
        ]
        return [row for row in rows if row[1].count or row[2].count]

    def class_rows(self) -> list[tuple[str, Share, Share]]:
        """The same for each class to keep."""
        nothing = Share(0, 0)
        return [
            (name, self.before.classes.get(name, nothing), share)
            for name, share in self.after.classes.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON: shares and differences first, then the counts."""
        shares: dict[str, Any] = {}
        for name in ("forget_trained", "forget_held_back", "override", "neighbours", "others"):
            shares |= self._compared(name)
        return {
            **shares,
            **self._compared("keep"),
            "gone": self.gone,
            "kept": self.kept,
            "class": self.name,
            "override_class": self.captions.override_name,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }

    def __str__(self) -> str:
        before, after = self.before, self.after
        return (
            f"{self.name}: {before.forget_trained} -> {after.forget_trained} of told captions, "
            f"{before.forget_held_back} -> {after.forget_held_back} of captions held back; "
            f"others {before.keep} -> {after.keep}"
        )

    def _compared(self, name: str) -> dict[str, float | None]:
        before, after = (getattr(part, name) or Share(0, 0) for part in (self.before, self.after))
        known = before.count and after.count
        return {
            f"{name}_before": before.value,
            f"{name}_after": after.value,
            f"{name}_difference": _difference(before, after) if known else None,
        }


def _share(hits: Tensor) -> Share:
    return Share(int(hits.sum()), hits.numel())


def _difference(before: Share, after: Share) -> float:
    if before.value is None or after.value is None:
        raise PeckerError("concept: there are no images of captions to keep to compare")
    return after.value - before.value
