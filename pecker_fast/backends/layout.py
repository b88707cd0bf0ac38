"""From positions (flat, C order) to offsets in a tensor's storage, whatever its strides."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["extent", "flat_storage", "is_dense", "positions_on", "storage_offsets"]

_INT32_MAX = 2**31 - 1
# indices -> {(shape, strides): offsets}; entries go when the index tensor goes.
_cache: Any = WeakTensorKeyDictionary()  # untyped in torch
# indices of a mask -> {device: weak reference to their copy there}
_copies: Any = WeakTensorKeyDictionary()


def extent(tensor: Tensor) -> int:
    """Elements of storage from the tensor's first element to its last, both counted."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its stretch of storage without holes (contiguous, channels_last)."""
    return extent(tensor) == tensor.numel()


def flat_storage(tensor: Tensor) -> Tensor:
    """(extent,) view of the tensor's stretch of storage, holes included."""
    return tensor.as_strided((extent(tensor),), (1,))


def storage_offsets(indices: Tensor, tensor: Tensor) -> Tensor:
    """Where the entries at `indices` of `tensor` lie in `flat_storage(tensor)`.

    Computed once per index tensor, shape and strides, then remembered.

    Args:
        indices: (nnz,) int32 positions in C order.
        tensor: the tensor they point into, on the same device.

    Returns:
        (nnz,) int32 in the order of `indices`; int64 where an offset does not fit int32.
    """
    if tensor.is_contiguous():
        return indices
    known = _cache.setdefault(indices, {})
    key = (tensor.shape, tensor.stride())
    if key not in known:
        rest = indices.long()
        offsets = torch.zeros_like(rest)
        for size, stride in reversed(list(zip(tensor.shape, tensor.stride(), strict=True))):
            offsets += rest % size * stride
            rest = rest // size
        known[key] = offsets.int() if extent(tensor) <= _INT32_MAX else offsets
    result: Tensor = known[key]
    return result


def positions_on(indices: Tensor, device: torch.device) -> Tensor:
    """A mask's positions on a device: one copy for all optimizers, averages and networks there.

    It lives as long as one of them holds it, and what `storage_offsets` remembers of it as long.
    """
    if indices.device == device:
        return indices
    known = _copies.setdefault(indices, {})
    copy: Tensor | None = known[device]() if device in known else None
    if copy is None:
        copy = indices.to(device)
        known[device] = weakref.ref(copy)
    return copy
