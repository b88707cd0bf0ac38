"""What the figures of an erased model are held against: the teacher's, those of real images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import CARD_NAME
from pecker_fast.evaluate.classifying import classify_with_early
from pecker_fast.evaluate.forgetting import check_figures, distance_to, kept_statistics
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.judgement import Written
from pecker_fast.evaluate.recognition import Recognition
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.files import read_json
from pecker_fast.runs.reading import checked

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = ["ClassFigures", "real_beside"]

REAL_PER_CLASS = 500  # real images that are judged; the Fréchet distance falls with their number


@dataclass(frozen=True)
class ClassFigures:
    """What a classifier says of as many images of every class, whichever is to be forgotten.

    Those of a teacher's many-step samples ship with its folder (`ModelFolder.figures["teacher"]`)
    because sampling them takes minutes on a CPU. Those of real images that a classifier was not
    trained on are on its card: no model does better but by luck.
    """

    steps: int  # DDIM steps; 0 for real images
    seed: int  # of the noise
    per_class: int  # images per class
    # Share of each class's images that the classifier calls that class.
    class_accuracy: tuple[float, ...]
    # Fréchet distance of all other classes, by the class left out; empty without statistics.
    frechet_without: tuple[float, ...]
    first: int  # how many of the first images (see `balanced_labels`) `first_correct` counts
    first_correct: int  # correct ones among them. Redrawing that many checks the figures quickly.
    # (K, K') images of each class that are taken for each class; empty where nobody says.
    confusion: tuple[tuple[int, ...], ...] = ()
    # As `frechet_without`, in the features of an earlier layer.
    early_without: tuple[float, ...] = ()
    source: str = ""  # real images in words; "" of a teacher's

    def __post_init__(self) -> None:
        classes, per_class = len(self.class_accuracy), (self.per_class,)
        check_figures(self.class_accuracy, per_class)
        for part in (self.frechet_without, self.early_without, self.confusion):
            if len(part) not in (0, classes):
                raise PeckerError(f"figures of {len(part)} classes beside those of {classes}")
        check_figures((), [count for row in self.confusion for count in row])

    @classmethod
    def of_images(
        cls,
        images: Tensor,
        labels: Tensor,
        classifier: Classifier,
        statistics: ClassStatistics | None,
        sampler: Sampler,
        first: int = 200,
        progress: str | None = None,
    ) -> ClassFigures:
        """Take all figures of images (N, C, H, W), uint8, in the order of `balanced_labels`."""
        classes = int(labels.max()) + 1
        logits, features, early = classify_with_early(classifier, images, progress)
        predicted = logits.argmax(dim=1)
        correct = predicted == labels
        first = min(first, len(labels))
        counts = torch.bincount(
            labels * logits.shape[1] + predicted, minlength=classes * logits.shape[1]
        )

        def without(part: Tensor | None, real: ClassStatistics | None) -> tuple[float, ...]:
            if part is None or real is None:
                return ()
            return tuple(
                distance_to(part[labels != k], kept_statistics(real, k, classes))
                for k in range(classes)
            )

        return cls(
            steps=sampler.steps,
            seed=sampler.seed,
            per_class=len(labels) // classes,
            class_accuracy=tuple(Share.counted(correct[labels == k]).value for k in range(classes)),
            frechet_without=without(features, statistics),
            first=first,
            first_correct=int(correct[:first].sum()),
            confusion=tuple(map(tuple, counts.view(classes, -1).tolist())),
            early_without=without(early, None if statistics is None else statistics.early),
        )

    @classmethod
    def of_real(
        cls,
        images: Tensor,
        labels: Tensor,
        classifier: Classifier,
        statistics: ClassStatistics,
        source: str,
    ) -> ClassFigures | None:
        """The same of the first real images of each class, 500 or as many as all have.

        None where a class has none.
        """
        classes = statistics.num_classes
        per_class = min(REAL_PER_CLASS, int(torch.bincount(labels, minlength=classes).min()))
        if per_class * (classes - 1) < 2:
            return None
        chosen = torch.cat([(labels == k).nonzero()[:per_class, 0] for k in range(classes)])
        figures = cls.of_images(
            images[chosen], labels[chosen], classifier, statistics, Sampler(1, 0)
        )
        return replace(figures, steps=0, source=source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassFigures:
        """Read what `to_dict` gave.

        Raises:
            PeckerError: an entry is missing or wrong.
        """
        file = "model folder: its shipped teacher figures"
        return checked(_Known, {"figures": dict(values)}, file).figures

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**facts, "confusion": [list(row) for row in self.confusion]}

    def forget_accuracy(self, forget: int) -> float:
        """Accuracy of the class to be forgotten."""
        return self.class_accuracy[forget]

    def keep_accuracy(self, forget: int) -> float:
        """Accuracy of all others; every class has the same number of images."""
        kept = [a for index, a in enumerate(self.class_accuracy) if index != forget]
        return sum(kept) / len(kept)

    def frechet(self, forget: int) -> float | None:
        """Fréchet distance of all others, or None where it was not measured."""
        return self.frechet_without[forget] if self.frechet_without else None

    def early(self, forget: int) -> float | None:
        """The same in the features of an earlier layer."""
        return self.early_without[forget] if self.early_without else None

    def recognition(
        self, names: Sequence[str], forget: int, also: Sequence[int] = ()
    ) -> Recognition:
        """The counts alone, under the names of the classes, where one is to be forgotten.

        Those in `also` are not among the classes to keep either.
        """
        shares = [Share.of(accuracy, self.per_class) for accuracy in self.class_accuracy]
        right = dict(zip(names, shares, strict=True))
        lost = {names[index] for index in (forget, *also)}
        kept = {name: share for name, share in right.items() if name not in lost}
        groups = {"forget": shares[forget], "keep": sum(kept.values(), Share(0, 0))}
        seen = self.confusion[forget] if self.confusion else ()
        known = [*names, *(f"class {index}" for index in range(len(names), len(seen)))]
        how = self.source or f"{self.steps} DDIM steps"
        return Recognition(groups, kept, dict(zip(known, seen, strict=False)), how, self.seed)


def real_beside(
    classifier: str | os.PathLike[str], num_classes: int | None = None
) -> ClassFigures | None:
    """The figures of real images on the card in a classifier's folder.

    None without a card, on an older one, and where they are of other than `num_classes` classes.

    Raises:
        PeckerError: a card that cannot be read.
    """
    path = Path(classifier) / CARD_NAME
    if not os.path.lexists(path):
        return None
    found = checked(_Card, read_json(path), path).test_figures
    return found if found and num_classes in (None, len(found.class_accuracy)) else None


class _Known(Written):
    figures: ClassFigures


class _Card(Written):
    test_figures: ClassFigures | None = None
