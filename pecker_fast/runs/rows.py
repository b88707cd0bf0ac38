"""Batches: dataclasses of tensors whose rows belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from torch import Tensor

__all__ = ["Rows"]

R = TypeVar("R", bound="Rows")


class Rows:
    """Base of dataclasses whose fields are (N, ...) tensors, `Rows` of as many, or None."""

    def map(self: R, change: Callable[[Tensor], Tensor]) -> R:
        """The same with every tensor changed, in the order of the fields."""
        changed: dict[str, Any] = {}
        for field in fields(cast(Any, self)):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, Rows):
                changed[field.name] = value.map(change)
        return cast(R, replace(cast(Any, self), **changed))

    def __len__(self) -> int:
        return len(self.tensors()[0])

    def __getitem__(self: R, rows: slice | Tensor) -> R:
        """Some of the rows."""
        return self.map(lambda tensor: tensor[rows])

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(keep)
        return found

    def with_tensors(self: R, tensors: Sequence[Tensor]) -> R:
        """The same, made of other tensors: as many as `tensors` gives, and in that order."""
        rest = iter(tensors)
        return self.map(lambda _: next(rest))
