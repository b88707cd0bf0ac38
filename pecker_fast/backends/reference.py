"""The specification in plain torch: what every other backend must agree with, on any device.

`MaskedAdamW` with mask M does to p[M] what torch.optim.AdamW does to a dense tensor holding p[M]:

    p *= 1 - lr * weight_decay
    exp_avg    += (1 - beta1) * (g - exp_avg)                    (exp_avg is g when beta1 = 0)
    exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g * g
    p -= lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^t) + eps)

in float32 (float64 for float64 parameters). p[~M] is neither read nor written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pecker_fast.backends.groups import expand_groups, group_means, mean_error, rank_groups
from pecker_fast.backends.layout import flat_storage, storage_offsets
from pecker_fast.backends.topk import nan_error, prepare_scores
from pecker_fast.backends.work import advance, update_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pecker_fast.backends.work import Entry, Hyperparameters, UpdateRow

__all__ = [
    "STEPS_ON_DEVICE",
    "ReferenceWork",
    "ema_salient_",
    "gather_salient_",
    "masked_adamw_",
    "norm_salient",
    "prepare",
    "scatter_salient_",
    "select_groups",
    "select_topk",
    "swap_salient_",
    "update_entry_",
]

STEPS_ON_DEVICE = False  # step counts are read on the host, so that is where they live


@dataclass(frozen=True)
class ReferenceWork:
    """The reference derives nothing from its entries."""

    entries: tuple[Entry, ...]
    steps: Tensor
    compact_grads: bool
    captured: ClassVar[bool] = False


def prepare(entries: Sequence[Entry], steps: Tensor, compact_grads: bool = False) -> ReferenceWork:
    """Take the entries of a step, once per mask.

    Args:
        entries: the parameters with their state, all on one device.
        steps: (len(entries),) float32 step counts; `masked_adamw_` advances them.
        compact_grads: gradients will come as (nnz,) tensors of the state's dtype, in slot order,
            instead of tensors of the parameters' shapes.
    """
    return ReferenceWork(tuple(entries), steps, compact_grads)


def masked_adamw_(
    work: ReferenceWork,
    grads: Sequence[Tensor | None],
    groups: Sequence[Hyperparameters],
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step on the salient entries, in place.

    Args:
        work: from `prepare`.
        grads: one per entry; None leaves the entry and its step count alone. Any float dtype.
        groups: the hyperparameters, indexed by `Entry.group`.
        grad_scale: () the gradients are multiplied by this: divide, and write the result back to
            the entries of the gradients that are read.
        found_inf: () if above 0, change nothing and count no step.
    """
    if found_inf is not None and found_inf.item() > 0:
        return
    for grad in grads:
        if grad is not None:
            grad.stride()  # a sparse gradient has none: refused before anything has changed
    counts = advance(work.steps, grads)
    rows, first_rows = update_rows(work.entries, grads, counts, groups)
    for entry, grad, first in zip(work.entries, grads, first_rows, strict=True):
        if grad is not None:
            update_entry_(
                entry, grad, rows[first : first + len(entry.starts)], work.compact_grads, grad_scale
            )


def gather_salient_(
    params: Sequence[Tensor],
    indices: Sequence[Tensor | None],
    out: Sequence[Tensor],
    accumulate: bool = False,
) -> None:
    """Copy (or add) the salient entries of each tensor to `out`.

    Args:
        params: tensors of any shape, strides and float dtype.
        indices: (nnz,) int32 positions each; None for every entry in C order.
        out: (nnz,) float32 or float64 each, or the tensor's own dtype where nothing is added.
        accumulate: add to `out` instead of replacing it.
    """
    with torch.no_grad():
        for param, positions, target in zip(params, indices, out, strict=True):
            values = param.reshape(-1) if positions is None else _read(param, positions)
            if accumulate:
                target += values.to(target.dtype)
            else:
                target.copy_(values)


def scatter_salient_(
    params: Sequence[Tensor], indices: Sequence[Tensor | None], values: Sequence[Tensor]
) -> None:
    """Write values to the salient entries of each tensor, rounded to its dtype.

    Args:
        params: tensors of any shape, strides and float dtype.
        indices: (nnz,) int32 positions each; None for every entry in C order.
        values: (nnz,) float32, float64 or the tensor's own dtype each.
    """
    with torch.no_grad():
        for param, positions, source in zip(params, indices, values, strict=True):
            if positions is None:
                param.copy_(source.view(param.shape))
            else:
                _write(param, positions, source)


def swap_salient_(
    params: Sequence[Tensor], indices: Sequence[Tensor | None], values: Sequence[Tensor]
) -> None:
    """Exchange the salient entries of each tensor with `values`, in place.

    Args:
        params: tensors of any shape, strides and float dtype; what they get is rounded to it.
        indices: (nnz,) int32 positions each; None for every entry in C order.
        values: (nnz,) float32, float64 or the tensor's own dtype each.
    """
    with torch.no_grad():
        for param, positions, vector in zip(params, indices, values, strict=True):
            old = param.reshape(-1).clone() if positions is None else _read(param, positions)
            scatter_salient_([param], [positions], [vector])
            vector.copy_(old)


def norm_salient(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The 2-norm over all values of a list of vectors, and whether they are finite.

    Args:
        values: float32 or float64 vectors on one device, at least one.

    Returns:
        () float64 norm; () float32, 1 if a value is infinite or NaN, else 0. (Squares are summed in
        float64, so a finite float32 gradient has a finite norm.)
    """
    squares = torch.stack([vector.detach().double().square().sum() for vector in values])
    norm = squares.sum().sqrt()
    return norm, (~norm.isfinite()).float()


def ema_salient_(
    averages: Sequence[Tensor],
    params: Sequence[Tensor],
    indices: Sequence[Tensor | None],
    decay: float,
) -> None:
    """Average in place: averages = decay * averages + (1 - decay) * params[indices].

    Args:
        averages: (nnz,) float32 or float64 each.
        params: tensors of any shape, strides and float dtype.
        indices: (nnz,) int32 positions each; None for every entry in C order.
        decay: in [0, 1].
    """
    with torch.no_grad():
        for average, param, positions in zip(averages, params, indices, strict=True):
            values = param.reshape(-1) if positions is None else _read(param, positions)
            average.lerp_(values.to(average.dtype), 1 - decay)


def update_entry_(
    entry: Entry,
    grad: Tensor,
    rows: Sequence[UpdateRow],
    compact_grad: bool,
    grad_scale: Tensor | None,
) -> None:
    """One parameter's part of `masked_adamw_`, with one row of scalars per class of starts."""
    row, param, positions = rows[0], entry.param, entry.indices
    dtype = entry.exp_avg_sq.dtype
    g = (grad if compact_grad else _read(grad, positions)).to(dtype)
    if grad_scale is not None:
        g = g / grad_scale.to(g.device, dtype)
        if compact_grad:
            grad.copy_(g)
        else:
            _write(grad, positions, g)
    if row.clip_value < math.inf:
        g = g.clamp(-row.clip_value, row.clip_value)
    if row.sign < 0:
        g = -g

    stored = _read(param, positions)
    if entry.master is None:
        p = stored.to(dtype)
    else:
        # A parameter that is not its rounded master was changed from outside: start from it again.
        p = torch.where(entry.master.to(param.dtype) == stored, entry.master, stored.to(dtype))

    step_size: float | Tensor = row.step_size
    bias_correction2_sqrt: float | Tensor = row.bias_correction2_sqrt
    if entry.start_class is not None:  # entries that joined later have corrections of their own
        start_class = entry.start_class.long()
        step_size = p.new_tensor([r.step_size for r in rows])[start_class]
        bias_correction2_sqrt = p.new_tensor([r.bias_correction2_sqrt for r in rows])[start_class]

    p.mul_(row.decay)
    exp_avg = g if entry.exp_avg is None else entry.exp_avg.lerp_(g, row.exp_avg_weight)
    exp_avg_sq = entry.exp_avg_sq
    exp_avg_sq.mul_(row.beta2).addcmul_(g, g, value=row.exp_avg_sq_weight)
    if row.amsgrad:
        assert entry.max_exp_avg_sq is not None  # the optimizer has checked it
        exp_avg_sq = torch.maximum(entry.max_exp_avg_sq, exp_avg_sq, out=entry.max_exp_avg_sq)
    denom = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(row.eps)
    if isinstance(step_size, Tensor):
        p.sub_(step_size * exp_avg / denom)
    else:
        p.addcdiv_(exp_avg, denom, value=-step_size)

    if entry.master is not None:
        entry.master.copy_(p)
    _write(param, positions, p)


def _read(tensor: Tensor, positions: Tensor | None) -> Tensor:
    """The entries at `positions` (a copy), or the tensor itself."""
    if positions is None:
        return tensor.detach()
    return flat_storage(tensor.detach()).index_select(0, storage_offsets(positions, tensor))


def _write(tensor: Tensor, positions: Tensor | None, values: Tensor) -> None:
    """Write the entries at `positions`, or all of them."""
    target = tensor.detach()  # shares the version counter, so autograd learns of the change
    if positions is not None:
        offsets = storage_offsets(positions, tensor).long()
        flat_storage(target).index_copy_(0, offsets, values.to(tensor.dtype))
    elif values.data_ptr() != tensor.data_ptr():  # else `values` is the tensor, changed in place
        target.copy_(values)


def select_topk(
    scores: Sequence[Tensor], k: int, names: Sequence[str] | None = None
) -> list[Tensor]:
    """Positions of the k largest scores of a list of tensors, by one stable sort of all of them.

    Args:
        scores: floating-point tensors of any shape and strides, on one device.
        k: how many entries to select over all tensors, 1 to the number of all entries.
        names: one name per tensor, for error messages.

    Returns:
        One tensor per score tensor: sorted flat positions in logical order, int32, same device.

    Raises:
        PeckerError, TypeError: see `prepare_scores`; also PeckerError for a NaN score.
    """
    flat = [tensor.detach().view(-1) for tensor in prepare_scores(scores, k, names)]
    for index, tensor in enumerate(flat):
        if torch.isnan(tensor).any():
            raise nan_error(index, names)
    order = torch.sort(torch.cat(flat), descending=True, stable=True).indices
    salient = order[:k].sort().values
    sizes = [tensor.numel() for tensor in flat]
    ends = torch.tensor(sizes, device=salient.device).cumsum(0)
    cuts = torch.searchsorted(salient, ends).tolist()
    starts = [0, *ends.tolist()[:-1]]
    return [
        (salient[first:last] - start).to(torch.int32)
        for first, last, start in zip([0, *cuts[:-1]], cuts, starts, strict=True)
    ]


def select_groups(
    scores: Sequence[Tensor], lengths: Sequence[int], k: int, names: Sequence[str] | None = None
) -> list[Tensor]:
    """Positions of the best groups of entries: `groups` says what is selected.

    Args:
        scores: as for `select_topk`.
        lengths: entries of a group, one number per tensor.
        k: how many entries the selected groups may have together; one group is always taken.
        names: one name per tensor, for error messages.

    Returns:
        As `select_topk`.

    Raises:
        PeckerError, TypeError: as `select_topk`; also for +inf and -inf in one group.
    """
    flat = [tensor.detach().view(-1).cpu() for tensor in prepare_scores(scores, k, names)]
    means = []
    for index, (tensor, length) in enumerate(zip(flat, lengths, strict=True)):
        means.append(group_means(tensor, length))
        if torch.isnan(means[-1]).any():
            raise mean_error(tensor, index, names)
    numels = [tensor.numel() for tensor in flat]
    taken = rank_groups(means, numels, lengths, k)
    return [
        expand_groups(groups, length, numel).to(scores[0].device)
        for groups, length, numel in zip(taken, lengths, numels, strict=True)
    ]
