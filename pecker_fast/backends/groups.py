"""Top-k of groups of entries (channels, blocks, tensors), ranked by their mean: the specification.

A group is a run of `length` consecutive entries; the last of a tensor may be shorter. Groups are
taken in the order of their means, equal ones in the order of their positions, while the number of
entries stays within k, but at least one. The sum behind a mean is taken in float64, in one order on
every backend, so that the ranking cannot depend on the machine: 32 interleaved partial sums, then
lane l + lane l + 16, then + 8, + 4, + 2, + 1. On a GPU that is what a warp does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pecker_fast.backends.topk import name_of, nan_error
from pecker_fast.errors import PeckerError

__all__ = ["expand_groups", "group_count", "group_means", "mean_error", "rank_groups"]

_LANES = 32


def group_count(numel: int, length: int) -> int:
    """The number of groups of a tensor."""
    return -(-numel // length)


def group_means(score: Tensor, length: int) -> Tensor:
    """(groups,) float64 means of consecutive runs of `length` entries, on the CPU.

    Args:
        score: (numel,) float32 or float64, contiguous, on the CPU.
        length: entries of a group.
    """
    whole = score.numel() // length * length
    values = score.numpy()
    with np.errstate(invalid="ignore"):  # inf - inf: the caller reports the NaN
        means = _sums(values[:whole].reshape(-1, length)) / length
        if whole < values.size:
            tail = values[whole:].reshape(1, -1)
            means = np.append(means, _sums(tail) / tail.size)
    return torch.from_numpy(means)


def _sums(groups: np.ndarray) -> np.ndarray:
    """(groups,) sums of (groups, length) values."""
    count, length = groups.shape
    whole = length // _LANES * _LANES
    # Along an axis that is not the innermost NumPy adds one after the other.
    lanes = np.add.reduce(
        groups[:, :whole].reshape(count, whole // _LANES, _LANES),
        axis=1,
        dtype=np.float64,
        initial=0.0,
    )
    lanes[:, : length - whole] += groups[:, whole:]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    sums: np.ndarray = lanes[:, 0]
    return sums


def mean_error(score: Tensor, index: int, names: Sequence[str] | None) -> PeckerError:
    """The error for a tensor in which some group's mean is NaN."""
    if torch.isnan(score).any():
        return nan_error(index, names)
    return PeckerError(
        f"{name_of(index, names)} hold +inf and -inf in one group, whose mean does not exist; "
        "use granularity 'element' or finite scores"
    )


def rank_groups(
    means: Sequence[Tensor], numels: Sequence[int], lengths: Sequence[int], k: int
) -> list[Tensor]:
    """The groups of each tensor that are taken.

    Args:
        means: (groups,) per tensor, on the CPU.
        numels: entries of each tensor.
        lengths: entries of each tensor's groups, the last one excepted.
        k: the number of entries to stay within.

    Returns:
        Sorted int64 group numbers per tensor.
    """
    sizes = []
    for mean, numel, length in zip(means, numels, lengths, strict=True):
        size = torch.full((mean.numel(),), length, dtype=torch.int64, device="cpu")
        size[-1:] = numel - (mean.numel() - 1) * length
        sizes.append(size)
    order = torch.sort(torch.cat(list(means)), descending=True, stable=True).indices
    entries = torch.cat(sizes)[order].cumsum(0)
    count = max(1, int(torch.searchsorted(entries, k, right=True)))
    taken = torch.zeros(order.numel(), dtype=torch.bool, device="cpu")
    taken[order[:count]] = True
    return [
        part.nonzero().flatten() for part in torch.split(taken, [mean.numel() for mean in means])
    ]


def expand_groups(groups: Tensor, length: int, numel: int) -> Tensor:
    """Sorted int32 positions of the entries of `groups` (int64, sorted)."""
    positions = (groups[:, None] * length + torch.arange(length, device="cpu")).flatten()
    return positions[positions < numel].to(torch.int32)
