"""Which class each network is told: remain labels, the class to forget and its override."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

__all__ = ["RANDOM_OVERRIDE", "ClassConditions", "Conditions", "DrawsConditions"]

RANDOM_OVERRIDE = "random"
"""Override that draws a kept class for every sample."""


@dataclass(frozen=True)
class Conditions(Rows):
    """What the networks are told in one batch of 2B samples: the remain half, then the forget half.

    Attributes:
        student: (2B, ...) for the generator as it learns: (c_r, c_f). Class labels, int64, or text
            embeddings.
        teacher: (2B, ...) for the teacher in the generator loss: (c_r, c_o).
        score: (2B, ...) for the pseudo-score in the generator loss. None: as `student`.
        sampled: (2B, ...) for the generator while the pseudo-score learns. None: as `student`.
        training: (2B, ...) for the pseudo-score while it learns. None: as `sampled`.
        redirected: (2B, ...) for the teacher where there is no guidance. None: as `teacher`.
        redirected_samples: (2B, ...) for the teacher at every time step, where the generator is
            told `sampled`. None: as `redirected`.
        weight: (2B,) factors of the samples' losses. None: 1.
    """

    student: Tensor
    teacher: Tensor
    score: Tensor | None = None
    sampled: Tensor | None = None
    training: Tensor | None = None
    redirected: Tensor | None = None
    redirected_samples: Tensor | None = None
    weight: Tensor | None = None

    @property
    def of_redirection(self) -> Tensor:
        """What the teacher is told without guidance."""
        return self.teacher if self.redirected is None else self.redirected

    @property
    def at_every_step(self) -> Tensor:
        """What the teacher is told at every time step."""
        told = self.redirected_samples
        return self.of_redirection if told is None else told

    @property
    def of_score(self) -> Tensor:
        """What the pseudo-score is told in the generator loss."""
        return self.student if self.score is None else self.score

    @property
    def of_samples(self) -> Tensor:
        """What the generator is told while the pseudo-score learns, and at every time step."""
        return self.student if self.sampled is None else self.sampled

    @property
    def learning(self) -> Tensor:
        """What the pseudo-score is told while it learns."""
        return self.of_samples if self.training is None else self.training


class DrawsConditions(Protocol):
    """What a run forgets and keeps, drawn anew for every iteration."""

    def draw(self, batch_size: int, random: IterationRandom) -> Conditions:
        """The conditions of 2 `batch_size` samples, on the device of `random`."""
        ...


class ClassConditions:
    """Draws the labels of a class-conditional model that must forget one class."""

    def __init__(
        self,
        forget: int | str | None,
        override: int | str,
        num_classes: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Resolve names to indices and check them.

        Args:
            forget: The class to erase: its index or its name. None = no class.
            override: The class put in its place: index, name, or 'random' for a kept class drawn
                anew for every sample.
            num_classes: Number of classes that the model knows.
            class_names: Their names, in order. None = the indices are the names.

        Raises:
            PeckerError: Unknown class, or a class to forget that is also the override.
        """
        names = tuple(class_names) if class_names is not None else None
        if names is not None and len(names) != num_classes:
            raise PeckerError(f"{num_classes} classes need as many names, got {len(names)}")
        self.num_classes = num_classes
        self.class_names = names or tuple(str(index) for index in range(num_classes))
        self.forget = None if forget is None else self._resolve(forget, "forget")
        self.override = None if override == RANDOM_OVERRIDE else self._resolve(override, "override")
        if self.forget is not None and self.forget == self.override:
            raise PeckerError(
                f"forget and override are the same class {self.class_names[self.forget]!r}: "
                "nothing would be forgotten; choose another override"
            )
        self.kept = tuple(index for index in range(num_classes) if index != self.forget)
        if not self.kept:
            raise PeckerError("a model with one class has nothing left to keep")

    def _resolve(self, value: int | str, key: str) -> int:
        try:
            return class_index(value, self.class_names, "the model")
        except PeckerError as error:
            raise PeckerError(f"{key}: {error}") from None

    def draw(self, batch_size: int, random: IterationRandom) -> Conditions:
        """Draw the labels of one iteration.

        Args:
            batch_size: B, samples per half.
            random: Source of randomness; the labels live on its device.

        Returns:
            2B labels: uniform over the kept classes, then the class to forget. Only the first B
            where no class is to be forgotten.
        """
        generator = random.generator
        remain = self._draw_kept(batch_size, generator)
        if self.forget is None:
            return Conditions(remain, remain)
        forget = torch.full_like(remain, self.forget)
        if self.override is None:
            override = self._draw_kept(batch_size, generator)
        else:
            override = torch.full_like(remain, self.override)
        return Conditions(torch.cat([remain, forget]), torch.cat([remain, override]))

    def _draw_kept(self, count: int, generator: torch.Generator) -> Tensor:
        labels = torch.randint(
            len(self.kept), (count,), generator=generator, device=generator.device
        )
        # The kept classes are all but one, so skipping over it is the whole lookup.
        return labels if self.forget is None else labels + (labels >= self.forget)
