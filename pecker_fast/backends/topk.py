"""What every backend's `select_topk` does before it selects: check the scores, name what is wrong.

The specification, for all of them: of all entries of all tensors, in logical (row-major) order, the
k largest; equal scores go to the earlier tensor, then to the lower position. -0.0 equals 0.0, +inf
is the largest score, NaN is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["MAX_NUMEL", "name_of", "nan_error", "prepare_scores"]

MAX_NUMEL = 2**31 - 1  # positions are int32
_FLOATS = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def name_of(index: int, names: Sequence[str] | None) -> str:
    """How a message calls tensor `index` of a list: by its parameter's name where there is one."""
    return f"scores[{index}]" if names is None else f"the scores of {names[index]!r}"


def nan_error(index: int, names: Sequence[str] | None) -> PeckerError:
    """The error for a NaN in tensor `index`."""
    return PeckerError(
        f"NaN in {name_of(index, names)}: it has no rank; expected numbers (infinities are "
        "allowed). Look for a NaN loss or gradient"
    )


def prepare_scores(
    scores: Sequence[Tensor], k: int, names: Sequence[str] | None = None
) -> list[Tensor]:
    """Check the arguments of `select_topk` and bring the scores to one dtype without rounding.

    Args:
        scores: floating-point tensors of any shape and strides, all on one device.
        k: how many entries to select, 1 to the number of all entries.
        names: one name per tensor, for error messages.

    Returns:
        Contiguous tensors, all float32, or all float64 if any of them is. float16 and bfloat16
        become float32, which holds each of their values exactly. What is as it should be is
        returned itself.

    Raises:
        TypeError: a score that is not a floating-point tensor; k not an int.
        PeckerError: k out of range; a tensor above 2^31-1 entries; a tensor without values (meta
            device); tensors on several devices.
    """
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"select_topk: k must be an int, got {type(k).__name__}")
    if not _all_fit(scores):
        for index, tensor in enumerate(scores):
            _check_score(index, tensor, scores[0], names)
    dtypes = {tensor.dtype for tensor in scores}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    total = sum(tensor.numel() for tensor in scores)
    if not 1 <= k <= total:
        raise PeckerError(
            f"select_topk: k must be between 1 and the number of scores, {total:,}; got {k:,}"
        )
    return [
        tensor
        if tensor.dtype == dtype and tensor.is_contiguous()
        else tensor.detach().to(dtype).contiguous()
        for tensor in scores
    ]


def _all_fit(scores: Sequence[Tensor]) -> bool:
    """Whether `_check_score` would accept them all; a device waits while this is looked into."""
    try:
        return (
            {tensor.dtype for tensor in scores} <= _FLOATS
            and len({tensor.device for tensor in scores}) == 1
            and not scores[0].is_meta
            and max(map(Tensor.numel, scores)) <= MAX_NUMEL
        )
    except (AttributeError, TypeError, IndexError):
        return False


def _check_score(index: int, tensor: Tensor, first: Tensor, names: Sequence[str] | None) -> None:
    """What `prepare_scores` raises for one tensor."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(
            f"select_topk: {name_of(index, names)} must be a floating-point tensor of scores, got "
            f"{found}"
        )
    if tensor.numel() > MAX_NUMEL:
        raise PeckerError(
            f"select_topk: {tensor.numel():,} entries in {name_of(index, names)}; positions are "
            f"int32, so at most {MAX_NUMEL:,} are supported. Split the parameter"
        )
    if tensor.is_meta:
        raise PeckerError(f"select_topk: no values in {name_of(index, names)}, on the meta device")
    if tensor.device != first.device:
        raise PeckerError(
            f"select_topk: expected one device, got {tensor.device} for {name_of(index, names)} "
            f"and {first.device} for {name_of(0, names)}"
        )
