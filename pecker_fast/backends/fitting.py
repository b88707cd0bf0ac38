"""Whether a parameter, its gradient and its state are what a compiled kernel takes for granted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pecker_fast.backends.layout import is_dense, storage_offsets
from pecker_fast.backends.work import Entry
from pecker_fast.errors import PeckerError

__all__ = [
    "check_shapes", "check_vector", "last_positions", "same_order", "slot_offsets", "state_fits",
]  # fmt: skip


def check_shapes(entry: Entry, grad: Tensor, compact_grad: bool, last: int) -> None:
    """Refuse what would make a kernel read or write outside a tensor.

    Args:
        entry: The parameter and its state.
        grad: Its gradient.
        compact_grad: The gradient is a (nnz,) tensor.
        last: The entry's largest position, of `last_positions`; -1 without any.

    Raises:
        PeckerError: the gradient's shape is not the parameter's (or (nnz,) if compact), or the
            parameter was resized after its state was made.
    """
    param, indices = entry.param, entry.indices
    expected = (entry.nnz,) if compact_grad else tuple(param.shape)
    if tuple(grad.shape) != expected:
        raise PeckerError(
            f"the gradient of {entry.name!r} has shape {tuple(grad.shape)}, expected {expected}"
        )
    fits = param.shape == entry.exp_avg_sq.shape if indices is None else last < param.numel()
    if not fits:
        raise PeckerError(
            f"{entry.name!r} now has shape {tuple(param.shape)}, which its optimizer state does "
            "not fit: make a new optimizer after resizing a parameter"
        )


def last_positions(entries: Sequence[Entry]) -> list[int]:
    """The largest position of each entry, -1 where it has none: waits for the device once."""
    found = [-1] * len(entries)
    masked = [i for i, entry in enumerate(entries) if entry.indices is not None and entry.nnz]
    if masked:
        # Positions are sorted.
        ends = torch.cat([entries[i].indices[-1:] for i in masked])  # type: ignore[index]
        for i, position in zip(masked, ends.tolist(), strict=True):
            found[i] = position
    return found


def check_vector(operation: str, tensor: Tensor, positions: Tensor | None, vector: Tensor) -> int:
    """The number of salient entries.

    Raises:
        PeckerError: `vector` has another number of elements.
    """
    nnz = tensor.numel() if positions is None else positions.numel()
    if vector.shape != (nnz,):
        raise PeckerError(
            f"{operation}: expected a vector of {nnz} salient values, got shape "
            f"{tuple(vector.shape)}"
        )
    return nnz


def same_order(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape lie in storage in the same order.

    Strides alone do not tell: those of dimensions of size 1 are arbitrary, and gradients of 1x1
    convolutions do come with other ones.
    """
    return tensor.stride() == other.stride() or (tensor.is_contiguous() and other.is_contiguous())


def state_fits(entry: Entry) -> bool:
    """Whether the state has the types and layouts that the kernels take for granted.

    Always, unless parameters or state were cast or laid out anew after construction.
    """
    param = entry.param
    moments = [entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq]
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    tensors = [tensor for tensor in (*moments, entry.master) if tensor is not None]
    if any(tensor.dtype != dtype for tensor in tensors):
        return False
    if entry.master is not None and param.dtype not in (torch.bfloat16, torch.float16):
        return False
    if entry.indices is None:  # all entries, in the one storage order of parameter and state
        return is_dense(param) and all(same_order(t, param) for t in tensors)
    return all(tensor.is_contiguous() for tensor in tensors)


def slot_offsets(indices: Tensor | None, tensor: Tensor) -> Tensor | None:
    """The offsets of the entries, or None where slot i simply is element i."""
    if indices is None or (indices.numel() == tensor.numel() and tensor.is_contiguous()):
        return None
    return storage_offsets(indices, tensor)
