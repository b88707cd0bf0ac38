"""From scores to salient positions: how many, over which scope, in groups of which shape.

A group is a run of consecutive entries in logical order: one entry, an output channel (a row of
dimension 0), a block, or the whole tensor. Entries are selected exactly; groups are ranked by their
mean score and taken in that order while the entries of the groups taken so far stay within k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pecker_fast import backends
from pecker_fast.backends.topk import MAX_NUMEL, nan_error
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
        return _select_entries(scores, density, scope)
    means = {
        name: _group_means(name, score, _group_length(score.shape, granularity, block_size))
        for name, score in scores.items()
    }
    shapes = {name: score.shape for name, score in scores.items()}
    return _select_groups(means, shapes, density, scope, granularity, block_size)


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
        groups = _group_count(shape.numel(), _group_length(shape, granularity, block_size))
        draws[name] = torch.rand(groups, generator=generator, device="cpu")
    if granularity == "element":
        return _select_entries(draws, density, scope)
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


def _select_entries(
    scores: Mapping[str, Tensor], density: float, scope: Scope
) -> dict[str, Tensor]:
    names, tensors = list(scores), list(scores.values())
    if len({tensor.device for tensor in tensors}) > 1:  # a model spread over several devices
        tensors = [tensor.cpu() for tensor in tensors]
    backend = backends.select("auto", tensors[0].device)
    if scope == "global":
        k = salient_count(density, sum(tensor.numel() for tensor in tensors))
        found = backend.select_topk(tensors, k, names)
    else:
        found = [
            backend.select_topk([tensor], salient_count(density, tensor.numel()), [name])[0]
            if tensor.numel()
            else torch.empty(0, dtype=torch.int32, device="cpu")
            for name, tensor in zip(names, tensors, strict=True)
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


def _group_count(numel: int, length: int) -> int:
    return math.ceil(numel / length)


def _group_means(name: str, score: Tensor, length: int) -> Tensor:
    """(groups,) float64 means of consecutive runs of `length` entries.

    NumPy adds in one thread and in a fixed order: the ranking cannot depend on the thread count.
    """
    score = score.detach().cpu().contiguous().view(-1)
    if score.dtype not in (torch.float32, torch.float64):
        score = score.float()  # exact; NumPy has no bfloat16
    numel = score.numel()
    whole = numel // length * length
    with np.errstate(invalid="ignore"):  # inf - inf is reported below, with the parameter's name
        sums = np.add.reduce(score[:whole].view(-1, length).numpy(), axis=1, dtype=np.float64)
        means = sums / length
        if whole < numel:
            tail = score[whole:].numpy()
            means = np.append(means, np.add.reduce(tail, dtype=np.float64) / tail.size)
    result = torch.from_numpy(means)
    if torch.isnan(result).any():
        if torch.isnan(score).any():
            raise nan_error(0, [name])
        raise PeckerError(
            f"the scores of {name!r} hold +inf and -inf in one group, whose mean does not exist; "
            "use granularity 'element' or finite scores"
        )
    return result


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
        taken = _rank(ranked, numels, lengths, salient_count(density, sum(numels)))
    else:
        taken = [
            _rank([score], [numel], [length], salient_count(density, numel))[0]
            for score, numel, length in zip(ranked, numels, lengths, strict=True)
        ]
    return {
        name: _expand(groups, length, numel)
        for name, groups, length, numel in zip(names, taken, lengths, numels, strict=True)
    }


def _rank(
    scores: Sequence[Tensor], numels: Sequence[int], lengths: Sequence[int], k: int
) -> list[Tensor]:
    """The groups of each tensor that are taken: best first while at most k entries, at least one.

    Args:
        scores: (groups,) per tensor.
        numels: entries of each tensor.
        lengths: entries of each tensor's groups, the last one excepted.
        k: the number of entries to stay within.
    """
    sizes = []
    for score, numel, length in zip(scores, numels, lengths, strict=True):
        size = torch.full((score.numel(),), length, dtype=torch.int64, device="cpu")
        size[-1:] = numel - (score.numel() - 1) * length
        sizes.append(size)
    order = torch.sort(torch.cat(list(scores)), descending=True, stable=True).indices
    entries = torch.cat(sizes)[order].cumsum(0)
    count = max(1, int(torch.searchsorted(entries, k, right=True)))
    taken = torch.zeros(order.numel(), dtype=torch.bool, device="cpu")
    taken[order[:count]] = True
    return [
        part.nonzero().flatten() for part in torch.split(taken, [score.numel() for score in scores])
    ]


def _expand(groups: Tensor, length: int, numel: int) -> Tensor:
    """Sorted int32 positions of the entries of `groups` (int64, sorted)."""
    positions = (groups[:, None] * length + torch.arange(length, device="cpu")).flatten()
    return positions[positions < numel].to(torch.int32)
