"""SaliencyMask: which entries of which parameters may change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.masks import files as mask_io
from pecker_fast.masks.checks import (
    Model,
    check_fit,
    checked_positions,
    few,
    maskable_shapes,
    named_tensors,
    parameters_of,
)
from pecker_fast.masks.packing import Bits, bitmask
from pecker_fast.masks.select import (
    DEFAULT_BLOCK_SIZE,
    Granularity,
    Scope,
    check_granularity,
    check_numel,
    random_positions,
    select_positions,
)
from pecker_fast.masks.stats import ParameterStats, plot_density
from pecker_fast.masks.structured import StructuredMasks, positions_by_pattern

__all__ = ["ParameterStats", "SaliencyMask"]

# What DataParallel and the published Stable Diffusion code put before a parameter's name.
PREFIXES = ("module.", "model.diffusion_model.")


@dataclass(frozen=True, eq=False, repr=False)
class SaliencyMask(StructuredMasks):
    """An immutable set of salient entries, by parameter name.

    Positions are flat positions in the logical (row-major) order of the parameter's shape, whatever
    its memory format. The tensors in `indices` are the mask's own and live on the CPU: they are
    handed out without a copy and must not be written to. A mask that was written to says so
    (PeckerError) when it is next saved, checked or hashed.

    Two masks are equal when their names, shapes and salient entries are; the order of the
    parameters, the granularity and the way the mask was made do not matter.

    Args:
        indices: name -> (nnz,) int32 positions, strictly increasing. Taken over, not copied. A
            parameter that is frozen as a whole has an empty tensor.
        shapes: name -> shape of the parameter; the same names.
        granularity: what was selected as one: "element", "out_channel", "block" or "tensor".
        block_size: entries in a block.

    Raises:
        PeckerError: no salient entry at all, positions out of range or not increasing, other names
            in `shapes`, a parameter of more than 2^31-1 entries.
        TypeError: positions that are not int32 tensors.
    """

    indices: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    granularity: Granularity = "element"
    block_size: int = DEFAULT_BLOCK_SIZE

    def __post_init__(self) -> None:
        check_granularity(self.granularity, self.block_size)
        if self.indices.keys() != self.shapes.keys():
            differing = self.indices.keys() ^ self.shapes.keys()
            raise PeckerError(
                "a mask needs positions and a shape for every parameter; one of them is missing "
                f"for {few(sorted(differing))}"
            )
        shapes = {name: torch.Size(shape) for name, shape in self.shapes.items()}
        indices = {n: checked_positions(n, self.indices[n], shape) for n, shape in shapes.items()}
        # The fields of a frozen dataclass can be replaced in this way only.
        object.__setattr__(self, "indices", MappingProxyType(indices))
        object.__setattr__(self, "shapes", MappingProxyType(shapes))
        object.__setattr__(self, "_versions", {n: p._version for n, p in indices.items()})
        if self.nnz == 0:
            raise PeckerError(
                f"the mask is empty: none of the {self.numel:,} entries of {len(shapes)} "
                "parameters is salient, so nothing could ever change"
            )

    # ---- Constructors

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, Tensor],
        density: float | Mapping[str, float],
        scope: Scope = "global",
        granularity: Granularity = "element",
        block_size: int = DEFAULT_BLOCK_SIZE,
    ) -> SaliencyMask:
        """The most salient fraction `density` of all entries.

        With granularity "element" the count is exact: k = max(1, round(density * entries)). Equal
        scores go to the earlier parameter, then to the lower position; -0.0 equals 0.0, +inf ranks
        first, negative scores rank below 0. The result is the same on every backend and for any
        number of threads. float64 scores are ranked as float64.

        With a coarser granularity, groups of entries are ranked by their mean score (added in
        float64) and taken in that order while the entries of all groups taken stay within k: the
        first group that does not fit ends the selection. At least one group is always taken, so a
        single group larger than k may exceed the density. Groups are rows of dimension 0
        ("out_channel"; each entry of a parameter with fewer than two dimensions), runs of
        `block_size` consecutive entries ("block"; the last one of a parameter may be shorter) or
        whole parameters ("tensor").

        Args:
            scores: name -> floating-point scores in the parameter's shape, any device and strides.
            density: fraction of salient entries, in (0, 1]. Or pattern -> density, as
                {"*.attn*": 0.2, "*": 0.01}: a parameter belongs to the first pattern (of fnmatch)
                that its name matches, those of one pattern are ranked together, 0 freezes.
            scope: rank all parameters together ("global") or each by itself ("per_tensor").
            granularity: what is selected as one.
            block_size: entries in a block.

        Raises:
            PeckerError: density outside (0, 1], NaN scores (the parameter is named), no scores, an
                unknown scope or granularity, a parameter of more than 2^31-1 entries.
            TypeError: scores that are not floating-point tensors.
        """
        tensors = named_tensors(scores, "scores")
        if isinstance(density, Mapping):
            indices = positions_by_pattern(tensors, density, scope, granularity, block_size)
        else:
            indices = select_positions(tensors, density, scope, granularity, block_size)
        return cls(indices, _shapes_of(tensors), granularity, block_size)

    @classmethod
    def from_dense(
        cls,
        dense: str | os.PathLike[str] | Mapping[str, Tensor],
        model: Model | None = None,
        prefixes: Sequence[str] = PREFIXES,
    ) -> SaliencyMask:
        """A mask from 0/1 tensors: bool, integer (SalUn's int64) or floating point.

        Args:
            dense: name -> 0/1 tensor in the parameter's shape, or the path of a file that holds
                such a dictionary (`torch.save`; read without running any code in it).
            model: if given, names are matched with its parameters and the result is checked
                against it. If not, names are kept as they are.
            prefixes: what may stand before a name in the file or in the model.

        Raises:
            PeckerError: no such file, not readable, other values than 0 and 1, names that are not
                the model's, other shapes, or no salient entry.
            TypeError: not a mapping of names to tensors.
        """
        if isinstance(dense, (str, os.PathLike)):
            dense = mask_io.read_dense(dense)
        tensors = named_tensors(dense, "a dense mask")
        if model is not None:
            parameters = parameters_of(model)
            targets = mask_io.match_names(tensors, parameters, prefixes)
            renamed = {targets[name]: tensor for name, tensor in tensors.items()}
            tensors = {name: renamed[name] for name in parameters if name in renamed}
        indices = {n: mask_io.positions_from_dense(n, dense) for n, dense in tensors.items()}
        mask = cls(indices, _shapes_of(tensors))
        if model is not None:
            mask.check(model)
        return mask

    @classmethod
    def full(cls, model: Model) -> SaliencyMask:
        """Every entry of every trainable parameter (of every tensor, if given a mapping)."""
        shapes = maskable_shapes(model)
        for name, shape in shapes.items():
            check_numel(name, shape)
        indices = {
            name: torch.arange(shape.numel(), dtype=torch.int32, device="cpu")
            for name, shape in shapes.items()
        }
        return cls(indices, shapes)

    @classmethod
    def random(
        cls,
        model: Model,
        density: float,
        seed: int,
        scope: Scope = "global",
        granularity: Granularity = "element",
        block_size: int = DEFAULT_BLOCK_SIZE,
    ) -> SaliencyMask:
        """As many entries as `from_scores` would take, at random: the control for saliency.

        Args:
            model: a module (its trainable parameters) or a mapping from names to tensors.
            density: fraction of salient entries, in (0, 1].
            seed: the same seed gives the same mask.
            scope: the count holds over all parameters ("global") or in each ("per_tensor").
            granularity: what is drawn as one; every group is equally likely.
            block_size: entries in a block.
        """
        shapes = maskable_shapes(model)
        indices = random_positions(shapes, density, seed, scope, granularity, block_size)
        return cls(indices, shapes, granularity, block_size)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None) -> SaliencyMask:
        """Read a mask written by `save`; with a model, `check` it too.

        Raises:
            PeckerError: no such file, truncated, not a mask file, damaged, or of another model.
        """
        content = mask_io.read_mask(path)
        mask = cls(
            content.indices,
            content.shapes,
            content.granularity,  # type: ignore[arg-type]  # read_mask checks the value
            content.block_size,
        )
        if model is not None:
            mask.check(model)
        return mask

    # ---- What it holds

    @cached_property
    def nnz(self) -> int:
        """The number of salient entries."""
        return sum(positions.numel() for positions in self.indices.values())

    @cached_property
    def numel(self) -> int:
        """The number of entries, salient and frozen."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def density(self) -> float:
        """The fraction of salient entries, nnz / numel."""
        return self.nnz / self.numel

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names, shapes and salient entries."""
        return mask_io.digest_of(self.shapes, self._bits())

    def stats(self) -> list[ParameterStats]:
        """Entries, salient entries and density of each parameter, in the mask's order."""
        return [
            ParameterStats(name, shape.numel(), self.indices[name].numel())
            for name, shape in self.shapes.items()
        ]

    def to_dense(self) -> dict[str, Tensor]:
        """Name -> bool tensor in the parameter's shape, True where salient."""
        return {name: self._dense(name).view(shape) for name, shape in self.shapes.items()}

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __repr__(self) -> str:
        return (
            f"SaliencyMask({self.nnz:,} of {self.numel:,} entries in {len(self)} parameters, "
            f"density={self.density:.4g}, granularity={self.granularity!r})"
        )

    # ---- What can be done with it

    def check(self, model: Model) -> None:
        """Refuse a model this mask was not made for.

        Args:
            model: a module, whose trainable parameters must all be in the mask (others may be), or
                a mapping, whose names must be the mask's.

        Raises:
            PeckerError: names that are in one of them only, or a shape that differs.
        """
        self._check_unwritten()
        check_fit(self.shapes, model)

    def save(self, path: str | os.PathLike[str], **about: str) -> None:
        """Write the mask as a safetensors file, 1 bit per entry or less; whole or not at all.

        Args:
            path: the file.
            **about: kept in its metadata, e.g. `model`: the digest of what it was found on.

        Raises:
            PeckerError: the file cannot be written.
        """
        self._check_unwritten()
        own = {"granularity": self.granularity, "block_size": str(self.block_size)}
        own |= {"nnz": str(self.nnz), "density": repr(self.density), "digest": self.digest}
        mask_io.write_mask(path, self.indices, self.shapes, about | own)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the density of each layer (weight and bias together) as bars into a PNG file."""
        plot_density(self.stats(), path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SaliencyMask):
            return NotImplemented
        if self is other:
            return True
        return self.shapes == other.shapes and all(
            torch.equal(positions, other.indices[name]) for name, positions in self.indices.items()
        )

    def __hash__(self) -> int:
        self._check_unwritten()
        return hash(self.digest)

    def __and__(self, other: object) -> SaliencyMask:
        if not isinstance(other, SaliencyMask):
            return NotImplemented
        return self._combine(other, torch.logical_and)

    def __or__(self, other: object) -> SaliencyMask:
        if not isinstance(other, SaliencyMask):
            return NotImplemented
        return self._combine(other, torch.logical_or)

    def __invert__(self) -> SaliencyMask:
        indices = {name: _positions(~self._dense(name)) for name in self}
        return SaliencyMask(indices, self.shapes, self.granularity, self.block_size)

    # ---- Immutability

    def __reduce__(self) -> tuple[Any, ...]:
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        arguments = (dict(self.indices), shapes, self.granularity, self.block_size)
        return SaliencyMask, arguments

    def _check_unwritten(self) -> None:
        versions: dict[str, int] = self.__dict__["_versions"]
        written = [n for n, p in self.indices.items() if p._version != versions[n]]
        if written:
            raise PeckerError(
                f"the positions of {few(written)} in this mask were written to; a SaliencyMask is "
                "immutable, clone the tensors before changing them"
            )

    def _dense(self, name: str) -> Tensor:
        """(numel,) bool, True where salient."""
        dense = torch.zeros(self.shapes[name].numel(), dtype=torch.bool, device="cpu")
        dense[self.indices[name]] = True
        return dense

    def _bits(self) -> dict[str, Bits]:
        return {
            name: bitmask(self.indices[name], shape.numel()) for name, shape in self.shapes.items()
        }

    def _combine(
        self, other: SaliencyMask, operation: Callable[[Tensor, Tensor], Tensor]
    ) -> SaliencyMask:
        if self.shapes != other.shapes:
            differing = [
                name
                for name in [*self, *(n for n in other if n not in self)]
                if self.shapes.get(name) != other.shapes.get(name)
            ]
            raise PeckerError(
                "masks of different models cannot be combined: they differ in the presence or "
                f"shape of {few(differing)}"
            )
        indices = {
            name: _positions(operation(self._dense(name), other._dense(name))) for name in self
        }
        alike = self.granularity == other.granularity and (
            self.granularity != "block" or self.block_size == other.block_size
        )
        granularity: Granularity = self.granularity if alike else "element"
        return SaliencyMask(indices, self.shapes, granularity, self.block_size)


def _positions(dense: Tensor) -> Tensor:
    return dense.nonzero().flatten().to(torch.int32)


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
