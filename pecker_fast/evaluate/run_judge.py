"""What a run is judged by, and how its teacher and its result fare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.fidelity import Inception
from pecker_fast.evaluate.forgetting import Evaluation, TeacherFigures, evaluate_images
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.kept import KeptFid, check_same_classes, check_same_size
from pecker_fast.evaluate.sampling import Sampler, balanced_labels

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["Judge"]

T = TypeVar("T")

CURVE_IMAGES = (60, 117)


@dataclass(frozen=True)
class Judge:
    """What a run is judged by.

    Attributes:
        classifier: names the class of an image.
        statistics: of real images, for the Fréchet distance, or None.
        per_class: images of each class.
        teacher: the teacher's figures where they ship with it; None to measure them.
        teacher_steps: DDIM steps of a many-step model, where its figures are measured.
        curve_images: images behind each point of the curve: of the class to forget, and at least
            so many of all others together.
        inception: gives the FID of each point against `real`; None for none.
        real: real images of the model's classes; there whenever `inception` is.
    """

    classifier: Classifier
    statistics: ClassStatistics | None
    per_class: int
    teacher: TeacherFigures | None = None
    teacher_steps: int = 50
    curve_images: tuple[int, int] = CURVE_IMAGES
    inception: Inception | None = None
    real: ImageSet | None = None

    def fid(self, model: ModelFolder, forget: int) -> KeptFid | None:
        """What measures FID as the model trains; None without the Inception network.

        Raises:
            PeckerError: the real images are of other classes or another size than the model's.
        """
        if self.inception is None or self.real is None:
            return None
        check_same_size(
            self.real.images, self.real.source, model.image_shape, "but the model draws"
        )
        name = model.class_names[forget]
        every = torch.arange(model.num_classes)
        check_same_classes(model.class_names, every, "the model", self.real, name)
        return KeptFid(self.inception, self.real, name)

    def of_teacher(self, model: ModelFolder, seed: int, ranks: Ranks) -> TeacherFigures | None:
        """The figures of the original model; None on all processes but the first."""
        if self.teacher is not None:
            return self.teacher if ranks.is_first else None
        sampler = Sampler(self.teacher_steps, seed)
        judge = TeacherFigures.of_images
        return self._figures(
            model,
            sampler,
            ranks,
            "original model",
            lambda images, labels: judge(
                images, labels, self.classifier, self.statistics, sampler, progress="judging"
            ),
        )

    def of_erased(
        self,
        erased: ModelFolder,
        forget: int,
        override: int | None,
        sampler: Sampler,
        ranks: Ranks,
    ) -> Evaluation | None:
        """The figures of a model that forgot; None on all processes but the first."""
        return self._figures(
            erased,
            sampler,
            ranks,
            "erased model",
            lambda images, labels: evaluate_images(
                images,
                labels,
                self.classifier,
                self.statistics,
                forget,
                override,
                sampler,
                erased.num_classes,
                "judging",
            ),
        )

    def _figures(
        self,
        model: ModelFolder,
        sampler: Sampler,
        ranks: Ranks,
        progress: str,
        judge: Callable[[Tensor, Tensor], T],
    ) -> T | None:
        """What `judge` says of `per_class` images of every class, drawn by all processes."""
        labels = balanced_labels(model.num_classes, self.per_class)
        images = sampler.pixels(model, labels, progress, ranks=ranks)
        found: list[T] = []

        def look() -> None:
            assert images is not None  # this is the first process
            found.append(judge(images, labels))

        ranks.first(look)
        return found[0] if found else None
