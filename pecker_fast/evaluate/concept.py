"""Captions to judge the erasure of a concept by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pecker_fast.evaluate.recognition import Recognition

if TYPE_CHECKING:
    from pecker_fast.evaluate.measures import Namer

__all__ = ["ConceptCaptions"]

_AT_ONCE = 500  # images before a judge


@dataclass(frozen=True)
class ConceptCaptions:
    """Captions, every one of which may occur more than once."""

    class_names: tuple[str, ...]  # of the classifier, by index
    forget: int  # the class that the concept is
    override: int | None  # the class in its place, or None
    # (caption, the class it names) by kind, see `Recognition`. Images are given in this order.
    groups: Mapping[str, Sequence[tuple[str, int]]]

    @property
    def name(self) -> str:
        """Name of the class that the concept is."""
        return self.class_names[self.forget]

    @property
    def override_name(self) -> str | None:
        """Name of the class in its place, or None."""
        return None if self.override is None else self.class_names[self.override]

    @property
    def prompts(self) -> list[str]:
        """All captions."""
        return [caption for group in self.groups.values() for caption, _ in group]

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class that each of `prompts` names."""
        return torch.tensor([label for group in self.groups.values() for _, label in group])

    def recognition(
        self,
        images: Tensor,
        seen: Namer,
        sampler: str = "given images",
        seed: int | None = None,
    ) -> Recognition:
        """Count what is seen in images (N, 3, H, W) in [0, 1], one for each of `prompts`.

        Raises:
            PeckerError: images that are not finite.
        """
        predicted = torch.cat([seen(part) for part in torch.split(images, _AT_ONCE)])
        kinds = [kind for kind, group in self.groups.items() for _ in group]
        groups = {
            kind: torch.tensor([each == kind for each in kinds], dtype=torch.bool)
            for kind in self.groups
        }
        return Recognition.of(
            predicted, self.labels, self.class_names, self.forget, groups, sampler, seed
        )
