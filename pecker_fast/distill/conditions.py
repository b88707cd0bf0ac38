"""Which class each network is told: remain labels, the class to forget and its override."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows

__all__ = [
    "RANDOM_OVERRIDE",
    "ClassConditions",
    "Classes",
    "Conditions",
    "DrawsConditions",
    "class_pairs",
]

Classes: TypeAlias = int | str | Sequence[int | str]
"""A class by its index or name, or several."""

RANDOM_OVERRIDE = "random"
"""Override that draws a kept class for every sample."""


@dataclass(frozen=True)
class Conditions(Rows):
    """What the networks are told in one batch of 2B samples: the remain half, then the forget half.

    (2B, ...) each: class labels, int64, or embeddings of prompts. The generator and the
    pseudo-score are told (c_r, c_f), the teacher (c_r, c_o).
    """

    student: Tensor  # the generator as it learns
    teacher: Tensor  # the teacher in the generator loss
    score: Tensor  # the pseudo-score in the generator loss
    of_samples: Tensor  # the generator at every time step, and in what the pseudo-score learns from
    training: Tensor  # the pseudo-score while it learns
    redirected: Tensor  # the generator as the run began, which takes the teacher's part
    at_every_step: Tensor  # the teacher at every time step
    weight: Tensor | None = None  # (2B,) factors of the samples' losses. None: 1

    @classmethod
    def everywhere(cls, student: Tensor, teacher: Tensor) -> Conditions:
        """The same in each place, where there is no guidance."""
        return cls(student, teacher, student, student, student, teacher, teacher)


class DrawsConditions(Protocol):
    """What a run forgets and keeps, drawn anew for every iteration."""

    def draw(self, batch_size: int, random: IterationRandom) -> Conditions:
        """The conditions of 2 `batch_size` samples, on the device of `random`."""
        ...


class ClassConditions:
    """Draws the labels of a class-conditional model that must forget some classes, or none.

    Attributes:
        pairs: Each class to forget, and the class in its place: None for a kept one drawn anew for
            every sample.
        kept: The other classes.
    """

    def __init__(
        self,
        forget: Classes | None,
        override: Classes,
        num_classes: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Resolve names to indices and check them.

        Args:
            forget: The class to erase, its index or its name, or several. None = no class.
            override: The class put in its place: index, name, or 'random' for a kept class drawn
                anew for every sample; of several classes one for all of them, or one for each.
            num_classes: Number of classes that the model knows.
            class_names: Their names, in order. None = the indices are the names.

        Raises:
            PeckerError: Unknown class, a class to forget that is also an override or is named
                twice, or another number of overrides.
        """
        names = tuple(class_names) if class_names is not None else None
        if names is not None and len(names) != num_classes:
            raise PeckerError(f"{num_classes} classes need as many names, got {len(names)}")
        self.num_classes = num_classes
        self.class_names = names or tuple(str(index) for index in range(num_classes))
        self.pairs = tuple(
            (self._resolve(index, "forget"), self._override(instead))
            for index, instead in class_pairs(forget, override)
        )
        if forget is None:
            self._override(_listed(override)[0])
        gone = [index for index, _ in self.pairs]
        for number, (index, instead) in enumerate(self.pairs):
            name = self.class_names[index]
            if index == instead:
                raise PeckerError(
                    f"forget and override are the same class {name!r}: nothing would be forgotten; "
                    "choose another override"
                )
            if index in gone[:number]:
                raise PeckerError(f"forget: class {name!r} is named twice; name it once")
            if instead is not None and instead in gone:
                raise PeckerError(
                    f"override: class {self.class_names[instead]!r}, in place of {name!r}, is "
                    "to be forgotten itself; choose a class that is kept"
                )
        self.kept = tuple(index for index in range(num_classes) if index not in gone)
        if not self.kept:
            raise PeckerError(
                "a model with one class has nothing left to keep"
                if num_classes == 1
                else "forget: all classes of the model; leave one at least that is kept"
            )

    def _override(self, value: int | str | None) -> int | None:
        # A class of that name wins, as everywhere.
        if value is None or (value == RANDOM_OVERRIDE and value not in self.class_names):
            return None
        return self._resolve(value, "override")

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
            2B labels: uniform over the kept classes, then over the classes to forget. Only the
            first B where no class is to be forgotten.
        """
        generator = random.generator
        remain = self._draw_kept(batch_size, generator)
        if not self.pairs:
            return Conditions.everywhere(remain, remain)
        if len(self.pairs) == 1:
            ((index, instead),) = self.pairs
            forget = torch.full_like(remain, index)
            if instead is None:
                override = self._draw_kept(batch_size, generator)
            else:
                override = torch.full_like(remain, instead)
        else:
            chosen = random.integers(0, len(self.pairs), batch_size)
            table = [(index, -1 if instead is None else instead) for index, instead in self.pairs]
            forget, override = torch.tensor(table, device=remain.device)[chosen].unbind(1)
            if -1 in (instead for _, instead in table):
                drawn = self._draw_kept(batch_size, generator)
                override = torch.where(override < 0, drawn, override)
        return Conditions.everywhere(torch.cat([remain, forget]), torch.cat([remain, override]))

    def _draw_kept(self, count: int, generator: torch.Generator) -> Tensor:
        labels = torch.randint(
            len(self.kept), (count,), generator=generator, device=generator.device
        )
        # Skipping over the classes to forget, the lowest first, is the whole lookup.
        for index in sorted(index for index, _ in self.pairs):
            labels = labels + (labels >= index)
        return labels


def class_pairs(
    forget: Classes | None, override: Classes | None
) -> list[tuple[int | str, int | str | None]]:
    """Each class to forget with its override, as they were named.

    Args:
        forget: One or several; None for none.
        override: One for all of them, or one for each.

    Raises:
        PeckerError: Another number of overrides, or an empty list.
    """
    if forget is None:
        return []
    gone = _listed(forget)
    instead: Sequence[int | str | None] = [None] if override is None else _listed(override)
    if not gone:
        raise PeckerError("forget: an empty list; name a class, or null for none")
    if len(instead) not in (1, len(gone)):
        raise PeckerError(
            f"{len(gone)} classes to forget and {len(instead)} overrides; give one override for "
            "all of them, or one for each, in the same order"
        )
    return list(zip(gone, instead if len(instead) > 1 else [instead[0]] * len(gone), strict=True))


def _listed(classes: Classes) -> Sequence[int | str]:
    return [classes] if isinstance(classes, (int, str)) else classes
