"""Masks by structure: chosen rows and columns, N of M, densities by name; masks of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError, PeckerTypeError
from pecker_fast.masks.checks import Model, few, named_tensors, trainable_parameters
from pecker_fast.masks.select import Granularity, Scope, check_numel, select_positions

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BoundMask", "Chosen", "StructuredMasks", "positions_by_pattern"]

Chosen: TypeAlias = Tensor | Iterable[int]


@dataclass(frozen=True, eq=False)
class BoundMask:
    """A mask of a model's parameters, for optimizers that get them without names.

    Names are looked up whenever an optimizer asks, since loops put sharded parameters in the place
    of whole ones, which nothing here may keep alive.
    """

    mask: StructuredMasks  # the mask by name
    model: nn.Module  # whose parameters these are

    @property
    def indices(self) -> dict[Tensor, Tensor]:
        """Parameter -> (nnz,) int32 sorted positions, on the CPU; a tied one's once."""
        return _by_parameter(self.mask, self.model)

    @property
    def shapes(self) -> dict[Tensor, torch.Size]:
        """Parameter -> its shape."""
        return {param: param.shape for param in self.indices}


def _by_parameter(mask: StructuredMasks, model: nn.Module) -> dict[Tensor, Tensor]:
    """The positions of a model's parameters; a tied one is known under each of its names.

    Raises:
        PeckerError: a name that the model lacks, a shape that differs, a trainable parameter that
            the mask does not know, or two names of one parameter with different positions.
        PeckerTypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise PeckerTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named = dict(model.named_parameters(remove_duplicate=False))
    indices: dict[Tensor, Tensor] = {}
    for name, positions in mask.indices.items():
        param = named.get(name)
        if param is None:
            raise PeckerError(
                f"the mask knows {name!r}, which {type(model).__name__} has not: give the model "
                "whose parameters the mask names, not a wrapper of it"
            )
        if param.shape != mask.shapes[name]:
            raise PeckerError(
                f"the mask of {name!r} has shape {tuple(mask.shapes[name])}, the parameter has "
                f"{tuple(param.shape)}: the mask was made for another model"
            )
        if not torch.equal(indices.setdefault(param, positions), positions):
            raise PeckerError(
                f"{name!r} is another name of a parameter that the mask knows already, with other "
                "positions: drop one of the two"
            )
    if missing := [n for n, p in named.items() if p.requires_grad and p not in indices]:
        raise PeckerError(f"the mask has no {few(missing)}: make it from this model")
    return indices


def _slices(
    model: Model, chosen: Mapping[str, Chosen], dim: int
) -> tuple[dict[str, Tensor], dict[str, torch.Size]]:
    """Positions of the chosen rows (dim 0) or columns (dim 1); everything else is frozen.

    Args:
        model: as `SaliencyMask.random` takes it.
        chosen: name -> numbers of rows, in any order, or a bool tensor with one item for each.
        dim: the dimension that is numbered.

    Raises:
        PeckerError: an unknown name, a parameter without this dimension, a number out of range.
    """
    parameters = trainable_parameters(model)
    if unknown := [name for name in chosen if name not in parameters]:
        raise PeckerError(f"the model has no trainable parameter {few(unknown)}")
    indices = {}
    for name, param in parameters.items():
        check_numel(name, param.shape)
        if name not in chosen:
            indices[name] = torch.empty(0, dtype=torch.int32, device="cpu")
            continue
        if param.dim() <= dim:
            raise PeckerError(f"{name!r} of shape {tuple(param.shape)} has no dimension {dim}")
        numbers = _numbers(name, chosen[name], param.shape[dim])
        outer, inner = param.shape[:dim].numel(), param.shape[dim + 1 :].numel()
        starts = torch.arange(outer).view(-1, 1, 1) * param.shape[dim] + numbers.view(1, -1, 1)
        positions = starts * inner + torch.arange(inner)
        indices[name] = positions.reshape(-1).to(torch.int32)
    return indices, {name: param.shape for name, param in parameters.items()}


def _numbers(name: str, chosen: Chosen, size: int) -> Tensor:
    """(n,) int64, increasing."""
    if isinstance(chosen, Tensor) and chosen.dtype == torch.bool:
        if chosen.shape != (size,):
            raise PeckerError(
                f"the choice for {name!r} has shape {tuple(chosen.shape)}, expected ({size},)"
            )
        return chosen.cpu().nonzero().flatten()
    numbers: Tensor = torch.as_tensor(
        chosen if isinstance(chosen, Tensor) else list(chosen), device="cpu"
    )
    if numbers.is_floating_point() or numbers.dim() != 1:
        if numbers.numel():
            raise PeckerError(f"the choice for {name!r} must be a list of whole numbers")
        numbers = numbers.new_empty(0, dtype=torch.int64)
    numbers = torch.tensor(sorted(set(numbers.tolist())), dtype=torch.int64, device="cpu")
    if numbers.numel() and not 0 <= int(numbers[0]) <= int(numbers[-1]) < size:
        raise PeckerError(
            f"the choice for {name!r} must be in 0..{size - 1}, got "
            f"{int(numbers[0])}..{int(numbers[-1])}"
        )
    return numbers


def _n_of_m(scores: Mapping[str, Tensor], n: int, m: int) -> dict[str, Tensor]:
    """Positions of the n highest of each m consecutive scores along the last dimension.

    Raises:
        PeckerError: n not in 1..m, a last dimension that m does not divide, or a NaN.
    """
    tensors = named_tensors(scores, "scores")
    if not 0 < n <= m:
        raise PeckerError(f"n must be in 1..m, got n={n}, m={m}")
    indices = {}
    for name, score in tensors.items():
        check_numel(name, score.shape)
        if score.dim() == 0 or score.shape[-1] % m:
            raise PeckerError(
                f"the last dimension of {name!r}, of shape {tuple(score.shape)}, is not a multiple "
                f"of {m}: leave the parameter out, or freeze it"
            )
        if torch.isnan(score).any():
            raise PeckerError(f"the scores of {name!r} contain NaN")
        rows = score.detach().reshape(-1, m)
        best = rows.sort(dim=1, descending=True, stable=True).indices[:, :n].sort(dim=1).values
        positions = best + torch.arange(len(rows), device=best.device).unsqueeze(1) * m
        indices[name] = positions.reshape(-1).to("cpu", torch.int32)
    return indices


def positions_by_pattern(
    scores: Mapping[str, Tensor],
    densities: Mapping[str, float],
    scope: Scope,
    granularity: Granularity,
    block_size: int,
) -> dict[str, Tensor]:
    """As `select_positions`, for the parameters of each pattern by themselves.

    Raises:
        PeckerError: a name that no pattern matches, or a pattern that gets no name.
    """
    owned: dict[str, list[str]] = {pattern: [] for pattern in densities}
    unmatched: list[str] = []
    for name in scores:
        pattern = next((p for p in densities if fnmatchcase(name, p)), None)
        (unmatched if pattern is None else owned[pattern]).append(name)
    if unmatched:
        raise PeckerError(
            f"no pattern of the densities matches {few(unmatched)}: end with '*'; 0 freezes"
        )
    if unused := [pattern for pattern, names in owned.items() if not names]:
        raise PeckerError(f"no parameter is left for the density of {few(unused)}")
    found: dict[str, Tensor] = {}
    for pattern, names in owned.items():
        if densities[pattern] == 0:
            found |= {name: torch.empty(0, dtype=torch.int32, device="cpu") for name in names}
        else:
            some = {name: scores[name] for name in names}
            found |= select_positions(some, densities[pattern], scope, granularity, block_size)
    return {name: found[name] for name in scores}


class StructuredMasks:
    """Constructors of SaliencyMask by structure, and its form for parameters without names."""

    indices: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]

    @classmethod
    def rows(cls, model: Model, chosen: Mapping[str, Chosen]) -> Self:
        """The chosen rows (dimension 0) of some parameters: embeddings of tokens, units, channels.

        Args:
            model: a module (its trainable parameters) or a mapping from names to tensors.
            chosen: name -> numbers of rows in any order, or a bool tensor with an item for each.
                Parameters that are not named are frozen.

        Raises:
            PeckerError: an unknown name, a number out of range, or no row at all.
        """
        made: Any = cls
        mask: Self = made(*_slices(model, chosen, 0))
        return mask

    @classmethod
    def columns(cls, model: Model, chosen: Mapping[str, Chosen]) -> Self:
        """The chosen columns (dimension 1): inputs of a layer. Otherwise as `rows`."""
        made: Any = cls
        mask: Self = made(*_slices(model, chosen, 1))
        return mask

    @classmethod
    def n_of_m(cls, scores: Mapping[str, Tensor], n: int, m: int) -> Self:
        """The n most salient of each m consecutive entries along the last dimension, as 2 of 4.

        Args:
            scores: as `from_scores` takes them; equal ones go to the lower position.
            n: salient entries in each group.
            m: entries in a group.

        Raises:
            PeckerError: n not in 1..m, a last dimension that is no multiple of m, or a NaN.
        """
        made: Any = cls
        mask: Self = made(_n_of_m(scores, n, m), {k: v.shape for k, v in scores.items()})
        return mask

    def bound(self, model: nn.Module) -> BoundMask:
        """The mask for loops that hand over parameters without names.

        `MaskedAdamW(model.parameters(), mask=mask.bound(model))`; a tied parameter is known once,
        by whichever of its names the mask has.

        Raises:
            PeckerError: the mask does not fit the model.
        """
        _by_parameter(self, model)
        return BoundMask(self, model)
