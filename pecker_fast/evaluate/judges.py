"""What images are judged by: a classifier, real images, or both; of a run also how many images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier, load_classifier
from pecker_fast.evaluate.classifier_files import statistics_beside
from pecker_fast.evaluate.defaults import JUDGED_PER_CLASS
from pecker_fast.evaluate.fidelity import Inception
from pecker_fast.evaluate.forgetting import Evaluation, evaluate_images
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.kept import Images
from pecker_fast.evaluate.reference import ClassFigures, real_beside
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.evaluate.statistics_files import load_statistics

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["Judge"]

T = TypeVar("T")

CURVE_IMAGES = (60, 117)


@dataclass(frozen=True)
class Judge:
    """What images are judged by."""

    classifier: Classifier | None = None  # names the class of an image, or None
    # Of real images in its features, for the Fréchet distance, or None.
    statistics: ClassStatistics | None = None
    # Another classifier, which says how far a figure is that of its judge, or None.
    second: Classifier | None = None
    inception: Inception | None = None  # gives FID and its like against `real`, or None
    # Real images of the classes that are judged; there whenever `inception` is.
    real: Images | None = None
    per_class: int = JUDGED_PER_CLASS  # images of each class that are drawn of a run's models
    # What the classifier says of real test images, or None.
    real_figures: ClassFigures | None = None
    # A run's teacher's figures where they ship with it; None to measure them.
    teacher: ClassFigures | None = None
    teacher_steps: int = 50  # DDIM steps of a many-step model, where its figures are measured
    # Images behind each point of a run's curve: of the class to forget, and at least so many of all
    # others together.
    curve_images: tuple[int, int] = CURVE_IMAGES

    @classmethod
    def load(
        cls,
        classifier: str | os.PathLike[str] | None,
        statistics: str | os.PathLike[str] | None,
        inception: str | os.PathLike[str] | None,
        real: Images | None,
        *,
        class_names: Sequence[str],
        model: ModelFolder | None,
        device: torch.device,
        second: str | os.PathLike[str] | None = None,
    ) -> Judge:
        """Read the files of judges, each of which may be missing.

        What they are is said above. Without statistics those that lie beside the classifier are
        read, if there are any; an .npz has the real images to take them of.

        Raises:
            PeckerError: a file that is missing, broken or of something else.
        """
        network = None if inception is None else Inception.load(inception, device)
        if classifier is None:
            return cls(inception=network, real=real)
        judge = load_classifier(classifier, class_names).to(device)
        file = statistics_beside(classifier) if statistics is None else Path(statistics)
        known = None
        if file is not None and model is not None:
            known = load_statistics(file, model, judge)
        elif file is not None:
            if file.suffix == ".npz":
                raise PeckerError(
                    f"--statistics {file}: for images on disk give a file of ClassStatistics.save, "
                    "as train-classifier writes beside the classifier"
                )
            known = ClassStatistics.load(file)
        other = None if second is None else load_classifier(second, class_names).to(device)
        return cls(
            judge, known, other, network, real,
            real_figures=real_beside(classifier, len(class_names)),
        )  # fmt: skip

    def evaluation(
        self,
        drawn: ImageSet,
        forget: int,
        override: int | None = None,
        sampler: Sampler | None = None,
        progress: str | None = None,
    ) -> Evaluation:
        """The classifier's figures, see `evaluate_images`; there is a classifier."""
        assert self.classifier is not None
        return evaluate_images(
            drawn.images, drawn.labels, self.classifier, self.statistics, forget, override, sampler,
            drawn.num_classes, progress, self.second,
        )  # fmt: skip

    def of_teacher(self, model: ModelFolder, seed: int, ranks: Ranks) -> ClassFigures | None:
        """The figures of the original model; None on all processes but the first."""
        if self.teacher is not None:
            return self.teacher if ranks.is_first else None
        sampler = Sampler(self.teacher_steps, seed)

        def figures(drawn: ImageSet) -> ClassFigures:
            assert self.classifier is not None  # of a run's
            return ClassFigures.of_images(
                drawn.images, drawn.labels, self.classifier, self.statistics, sampler,
                progress="judging",
            )  # fmt: skip

        return self._drawn(model, sampler, ranks, "original model", figures)

    def of_erased(
        self,
        erased: ModelFolder,
        forget: int,
        override: int | None,
        sampler: Sampler,
        ranks: Ranks,
    ) -> Evaluation | None:
        """The figures of a model that forgot; None on all processes but the first."""
        return self._drawn(
            erased, sampler, ranks, "erased model",
            lambda drawn: self.evaluation(drawn, forget, override, sampler, "judging"),
        )  # fmt: skip

    def _drawn(
        self,
        model: ModelFolder,
        sampler: Sampler,
        ranks: Ranks,
        progress: str,
        figures: Callable[[ImageSet], T],
    ) -> T | None:
        """What `figures` says of `per_class` images of every class, drawn by all processes."""
        labels = balanced_labels(model.num_classes, self.per_class)
        images = sampler.pixels(model, labels, progress, ranks=ranks)
        found: list[T] = []

        def look() -> None:
            assert images is not None  # this is the first process
            found.append(figures(ImageSet(images, labels, model.class_names, progress)))

        ranks.first(look)
        return found[0] if found else None
