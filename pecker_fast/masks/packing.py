"""Sorted positions in few bytes: as a bitmask, or as the gaps between them.

Gaps are symbols of one width, 8 or 16 bits. A gap g (entries between two salient ones) is
g // TOP times the symbol TOP, then g % TOP, where TOP is the largest symbol. Bits for each salient
entry at random positions (entropy in the last row):

    density     .1    .01   .001  .0001
    bitmask     10    100   1000  10000
    8-bit gaps   8    8.7     36    318
    16-bit gaps 16     16     16     16
    entropy    4.7    8.1   11.4   14.7
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pecker_fast.backends.topk import MAX_NUMEL

__all__ = ["Bits", "bitmask", "gaps", "positions_of_gaps", "smallest", "unpacked"]

Bits: TypeAlias = npt.NDArray[np.uint8]
_SYMBOLS = (np.uint8, np.uint16)


def bitmask(positions: Tensor, numel: int) -> Bits:
    """(ceil(numel / 8),) bytes; bit i % 8 of byte i // 8 is set where position i is salient."""
    dense = np.zeros(numel, dtype=np.bool_)
    dense[positions.numpy()] = True
    return np.packbits(dense, bitorder="little")


def unpacked(bits: Bits, numel: int) -> npt.NDArray[np.bool_]:
    """(numel,) bool: the inverse of `bitmask`."""
    return np.unpackbits(bits, count=numel, bitorder="little").view(np.bool_)


def smallest(positions: Tensor, numel: int) -> npt.NDArray[Any] | None:
    """The gaps in the width that takes less room, or None where a bitmask takes no more."""
    steps = _gaps(positions)
    sizes = [(_count(steps, kind) * np.dtype(kind).itemsize, kind) for kind in _SYMBOLS]
    size, kind = min(sizes, key=lambda pair: pair[0])
    return gaps(positions, kind) if size < (numel + 7) // 8 else None


def gaps(positions: Tensor, kind: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    """(n,) symbols of sorted int32 positions."""
    steps = _gaps(positions)
    top = np.iinfo(kind).max
    symbols = np.full(_count(steps, kind), top, dtype=kind)
    symbols[np.cumsum(steps // top + 1) - 1] = steps % top
    return symbols


def positions_of_gaps(symbols: npt.NDArray[Any], numel: int) -> Tensor:
    """(nnz,) int32 sorted positions: the inverse of `gaps`.

    Raises:
        ValueError: these are no gaps of a tensor with so many entries.
    """
    if symbols.ndim != 1 or symbols.dtype not in _SYMBOLS:
        raise ValueError(
            f"gaps must be a list of 8 or 16 bits each, got {symbols.dtype} {list(symbols.shape)}"
        )
    if numel > MAX_NUMEL:
        raise ValueError(f"{numel} entries, more than int32 positions can reach")
    ends = symbols < np.iinfo(symbols.dtype).max
    if len(symbols) and not ends[-1]:
        raise ValueError("the last gap has no end")
    positions = symbols.cumsum(dtype=np.int64)[ends]
    positions += np.arange(len(positions))
    if len(positions) and positions[-1] >= numel:
        raise ValueError(f"position {positions[-1]} of {numel} entries")
    return torch.from_numpy(positions.astype(np.int32))


def _gaps(positions: Tensor) -> npt.NDArray[np.int64]:
    steps = positions.numpy().astype(np.int64)
    steps[1:] -= steps[:-1] + 1  # numpy makes the right side first
    return steps


def _count(steps: npt.NDArray[np.int64], kind: type[np.unsignedinteger[Any]]) -> int:
    return len(steps) + int((steps // np.iinfo(kind).max).sum())
