"""From scores to salient positions: how many, over which scope, in groups of which shape.

A group is a run of consecutive entries in logical order: one entry, an output channel (a row of
dimension 0), a block, or the whole tensor. Entries are selected exactly; groups are ranked by their
mean score and taken in that order while the entries of the groups taken so far stay within k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pecker_fast import backends
from pecker_fast.backends.groups import expand_groups, group_count, rank_groups
from pecker_fast.backends.topk import MAX_NUMEL
from pecker_fast.errors import PeckerError

__all__ = [
    "DEFAULT_BLOCK_SIZE",
    "Granularity",
    "Scope",
    "check_density",
    "check_granularity",
    "check_numel",
    "random_positions",
    "salient_count",
    "select_positions",
]

Granularity = Literal["element", "out_channel", "block", "tensor"]
Scope = Literal["global", "per_tensor"]
DEFAULT_BLOCK_SIZE = 64


def check_density(density: float) -> None:
    """Refuse a density that is not a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, (int, float)):
        raise TypeError(f"density must be a number, got {type(density).__name__}")
    if not 0.0 < density <= 1.0:  # also refuses NaN
        raise PeckerError(
            f"density must be in (0, 1], the fraction of salient entries; got {density}"
        )


def check_granularity(granularity: str, block_size: int) -> None:
    """Refuse an unknown granularity or a block size below 1."""
    if granularity not in get_args(Granularity):
        raise PeckerError(
            f"granularity must be one of {', '.join(get_args(Granularity))}; got {granularity!r}"
        )
    if not isinstance(block_size, int) or isinstance(block_size, bool):
        raise TypeError(f"block_size must be an int, got {type(block_size).__name__}")
    if block_size < 1:
        raise PeckerError(f"block_size must be at least 1, got {block_size}")


def check_numel(name: str, shape: torch.Size) -> None:
    """Refuse a parameter whose positions do not fit int32."""
    if shape.numel() > MAX_NUMEL:
        raise PeckerError(
            f"parameter {name!r} has {shape.numel():,} entries; positions are int32, so a mask "
            f"holds at most {MAX_NUMEL:,} per parameter. Split the parameter"
        )


def salient_count(density: float, numel: int) -> int:
    """How many of `numel` entries a density asks for: rounded, at least one if there is any."""
    return min(numel, max(1, round(density * numel)))


def select_positions(
    scores: Mapping[str, Tensor],
    density: float,
    scope: Scope,
    granularity: Granularity,
    block_size: int,
) -> dict[str, Tensor]:
    """Sorted int32 positions of the most salient entries of each parameter, on the CPU.

    Raises:
        PeckerError: see `SaliencyMask.from_scores`.
        TypeError: scores that are not floating-point tensors.
    """
    _check_request(density, scope, granularity, block_size)
    for name, score in scores.items():
        if not isinstance(score, Tensor) or not score.is_floating_point():
            found = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"the scores of {name!r} must be a floating-point tensor, got {found}")
        check_numel(name, score.shape)
        if score.is_meta:
            raise PeckerError(f"the scores of {name!r} are on the meta device and have no values")
    if granularity == "element":
        return _select(scores, density, scope)
    lengths = [_group_length(score.shape, granularity, block_size) for score in scores.values()]
    return _select(scores, density, scope, lengths)


def random_positions(
    shapes: Mapping[str, torch.Size],
    density: float,
    seed: int,
    scope: Scope,
    granularity: Granularity,
    block_size: int,
) -> dict[str, Tensor]:
    """As `select_positions` with one uniform random score per group: every group equally likely.

    Drawing a score per entry and averaging would favour small groups, whose means vary more.
    """
    _check_request(density, scope, granularity, block_size)
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = {}
    for name, shape in shapes.items():
        check_numel(name, shape)
        groups = group_count(shape.numel(), _group_length(shape, granularity, block_size))
        draws[name] = torch.rand(groups, generator=generator, device="cpu")
    if granularity == "element":
        return _select(draws, density, scope)
    return _select_groups(draws, shapes, density, scope, granularity, block_size)


def _check_request(density: float, scope: str, granularity: str, block_size: int) -> None:
    check_density(density)
    check_granularity(granularity, block_size)
    if scope not in get_args(Scope):
        raise PeckerError(f"scope must be one of {', '.join(get_args(Scope))}; got {scope!r}")
    if scope == "per_tensor" and granularity == "tensor":
        raise PeckerError(
            "scope 'per_tensor' with granularity 'tensor' would make every tensor salient; "
            "use scope 'global'"
        )


def _select(
    scores: Mapping[str, Tensor],
    density: float,
    scope: Scope,
    lengths: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Entries, or groups of entries where `lengths` says how long each tensor's groups are."""
    names, tensors = list(scores), list(scores.values())
    if len({tensor.device for tensor in tensors}) > 1:  # a model spread over several devices
        tensors = [tensor.cpu() for tensor in tensors]
    backend = backends.select("auto", tensors[0].device)

    def select(chosen: slice) -> list[Tensor]:
        part = tensors[chosen]
        k = salient_count(density, sum(tensor.numel() for tensor in part))
        if lengths is None:
            return backend.select_topk(part, k, names[chosen])
        return backend.select_groups(part, lengths[chosen], k, names[chosen])

    if scope == "global":
        found = select(slice(None))
    else:
        found = [
            select(slice(i, i + 1))[0]
            if tensor.numel()
            else torch.empty(0, dtype=torch.int32, device="cpu")
            for i, tensor in enumerate(tensors)
        ]
    return {name: positions.cpu() for name, positions in zip(names, found, strict=True)}


def _group_length(shape: torch.Size, granularity: Granularity, block_size: int) -> int:
    """Entries in a group; only the last group of a tensor may be shorter."""
    if granularity == "element":
        return 1
    if granularity == "block":
        return block_size
    if granularity == "tensor":
        return max(1, shape.numel())
    # An entry of a bias or of a normalisation belongs to one output channel.
    return max(1, shape[1:].numel()) if len(shape) > 1 else 1


def _select_groups(
    group_scores: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    density: float,
    scope: Scope,
    granularity: Granularity,
    block_size: int,
) -> dict[str, Tensor]:
    names = list(shapes)
    lengths = [_group_length(shapes[name], granularity, block_size) for name in names]
    numels = [shapes[name].numel() for name in names]
    ranked = [group_scores[name] for name in names]
    if scope == "global":
        taken = rank_groups(ranked, numels, lengths, salient_count(density, sum(numels)))
    else:
        taken = [
            rank_groups([score], [numel], [length], salient_count(density, numel))[0]
            for score, numel, length in zip(ranked, numels, lengths, strict=True)
        ]
    return {
        name: expand_groups(groups, length, numel)
        for name, groups, length, numel in zip(names, taken, lengths, numels, strict=True)
    }
