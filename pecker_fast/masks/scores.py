"""Saliency scores: how much each parameter entry matters to a loss, from gradients of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.masks.checks import Model, few, trainable_parameters

__all__ = ["LossFn", "Reduction", "saliency_scores"]

LossFn: TypeAlias = Callable[[], Tensor]
Reduction = Literal["abs_of_sum", "sum_of_abs", "sum_of_squares", "fisher_ratio", "retain_aware"]
CONTRASTS = ("fisher_ratio", "retain_aware")
"""Reductions that need the data to keep as well."""
FLOOR = 1e-3  # of retain_aware, as a share of the mean


def saliency_scores(
    model: Model,
    losses: Iterable[LossFn] | LossFn,
    *,
    reduction: Reduction = "abs_of_sum",
    remain_losses: Iterable[LossFn] | LossFn | None = None,
    clip_grad_norm: float | None = None,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """One score per parameter entry from the gradients g of a number of batches.

    - "abs_of_sum": |sum of g| (SalUn; the absolute value is taken after the sum)
    - "sum_of_abs": sum of |g|
    - "sum_of_squares": sum of g^2, the diagonal of the empirical Fisher information
    - "fisher_ratio": sum of g^2 over `losses` / (sum of g^2 over `remain_losses` + tiny), where
      tiny is the smallest normal float: 0 / 0 scores 0, and an entry that only the forgotten data
      need scores very high or +inf
    - "retain_aware": |sum of g| over `losses` / (r + 0.001 mean of r), where r is the root mean
      square of g over the batches of `remain_losses` and its mean is over all entries: what the
      forgetting needs and the kept data hardly notice

    The model is left as it was: no `.grad` is written, and buffers, training modes and
    requires_grad flags that the losses change are restored. Only the random state moves on, where a
    loss draws from it.

    Args:
        model: a module, whose trainable parameters are scored, or name -> tensor that requires
            grad.
        losses: one function per batch, each of which runs the network and returns a scalar loss;
            or a single function for a single batch. Consumed once, one batch at a time.
        reduction: how the gradients of the batches become one score.
        remain_losses: the batches of the data to keep; for the last two reductions only.
        clip_grad_norm: scale every batch's gradient to at most this norm over all scored parameters
            before it is added (1.0 in SalUn's DDPM code). None = no clipping.
        parameters: score these names only. None = all of them.

    Returns:
        name -> scores in the parameter's shape, contiguous, on its device; float32 (float64 for
        float64 parameters). Parameters a loss does not depend on score 0.

    Raises:
        PeckerError: no batch, a loss that is not a scalar, not finite or that depends on none of
            the parameters or freezes one of them, a gradient that is not finite (batch and
            parameter are named), an unknown name, no trainable parameter, `remain_losses` missing
            or not used.
        TypeError: a loss that is not a tensor or not a function.
    """
    if reduction not in get_args(Reduction):
        raise PeckerError(
            f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}"
        )
    if (reduction in CONTRASTS) != (remain_losses is not None):
        raise PeckerError(
            f"remain_losses are needed for the reductions {' and '.join(CONTRASTS)}, no other; "
            f"got reduction {reduction!r} and {'no ' if remain_losses is None else ''}remain_losses"
        )
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise PeckerError(f"clip_grad_norm must be above 0 or None, got {clip_grad_norm}")
    scored = _scored_parameters(model, parameters)
    with _undisturbed(model), torch.enable_grad():
        scores, _ = _accumulate(scored, losses, reduction, clip_grad_norm, "losses")
        if remain_losses is not None:
            squares, batches = _accumulate(
                scored, remain_losses, "sum_of_squares", clip_grad_norm, "remain_losses"
            )
            _contrast(scores, squares, batches, reduction)
    for name, score in scores.items():
        if not torch.isnan(score).logical_not().all():
            raise PeckerError(
                f"the scores of {name!r} overflow: squared gradients of both losses are infinite; "
                "use clip_grad_norm"
            )
    return scores


def _scored_parameters(model: Model, names: Iterable[str] | None) -> dict[str, Tensor]:
    scored = trainable_parameters(model)
    if names is not None:
        wanted = list(names)
        if unknown := [name for name in wanted if name not in scored]:
            raise PeckerError(f"the model has no trainable parameter {few(unknown)}")
        scored = {name: scored[name] for name in wanted}
    for name, param in scored.items():
        if not param.requires_grad:
            raise PeckerError(f"{name!r} does not require grad, so it cannot be scored")
    if not scored:
        raise PeckerError(
            f"{type(model).__name__} has no trainable parameter to score; call "
            "requires_grad_(True) on the parameters the mask is for"
        )
    return scored


def _accumulate(
    scored: Mapping[str, Tensor],
    losses: Iterable[LossFn] | LossFn,
    reduction: Reduction,
    clip_grad_norm: float | None,
    what: str,
) -> tuple[dict[str, Tensor], int]:
    """The sum over batches of g^2, |g|, or the absolute value of that of g; and their number."""
    sums = {
        name: torch.zeros(
            param.shape,
            dtype=torch.float64 if param.dtype == torch.float64 else torch.float32,
            device=param.device,
        )
        for name, param in scored.items()
    }
    batch = -1
    for batch, loss_fn in enumerate([losses] if callable(losses) else losses):
        where = f"{what}[{batch}]"
        loss = _checked_loss(loss_fn, where)
        if frozen := [name for name, param in scored.items() if not param.requires_grad]:
            raise PeckerError(f"{where} switched off requires_grad of {few(frozen)}")
        if clip_grad_norm is None:
            added = _add_as_they_come(sums, scored, loss, reduction)
        else:
            added = _add_clipped(sums, scored, loss, reduction, clip_grad_norm)
        if not added:
            raise PeckerError(f"{where} depends on none of the {len(scored)} parameters to score")
        if not all(finite := torch.stack([one.cpu() for one in added.values()]).tolist()):
            bad = [name for name, fine in zip(added, finite, strict=True) if not fine]
            raise PeckerError(
                f"the gradient of {where} is not finite for {few(bad)}; check the loss, or use a "
                "wider dtype"
            )
    if batch < 0:
        raise PeckerError(f"{what} is empty: at least one batch is needed to score parameters")
    if reduction in ("abs_of_sum", "retain_aware"):
        for total in sums.values():
            total.abs_()
    return sums, batch + 1


def _contrast(
    scores: Mapping[str, Tensor],
    squares: Mapping[str, Tensor],
    batches: int,
    reduction: Reduction,
) -> None:
    """Divide the scores by what the kept data need; in place, the sums of squares too."""
    if reduction == "fisher_ratio":
        for name, score in scores.items():
            score.div_(squares[name].add_(torch.finfo(score.dtype).tiny))
        return
    for name in scores:
        squares[name].div_(batches).sqrt_()
    entries = sum(score.numel() for score in scores.values())
    mean = sum(float(rms.double().sum()) for rms in squares.values()) / entries
    if mean == 0:
        raise PeckerError(
            "remain_losses have no gradient at these weights, so retain_aware cannot tell what "
            "the data to keep need"
        )
    for name, score in scores.items():
        score.div_(squares[name].add_(FLOOR * mean))


def _checked_loss(loss_fn: LossFn, where: str) -> Tensor:
    if not callable(loss_fn):
        raise TypeError(
            f"{where} must be a function without arguments that returns the loss of a batch, got "
            f"{type(loss_fn).__name__}"
        )
    loss = loss_fn()
    if not isinstance(loss, Tensor):
        raise TypeError(f"{where} must return a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise PeckerError(f"{where} must return a scalar, got shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise PeckerError(
            f"{where} does not depend on any parameter that requires grad; was it computed under "
            "torch.no_grad or torch.inference_mode?"
        )
    if not torch.isfinite(loss).all():
        raise PeckerError(
            f"{where} is {loss.item()}: a saliency needs finite losses; check the data and the "
            "checkpoint"
        )
    return loss


def _add_as_they_come(
    sums: Mapping[str, Tensor], scored: Mapping[str, Tensor], loss: Tensor, reduction: Reduction
) -> dict[str, Tensor]:
    """Add one batch's gradients to the sums while the backward pass makes them.

    Each is released at once, so that no more than the sums is alive beside the network: at the size
    of Stable Diffusion 3.2 GiB less.

    Returns:
        Of the parameters that the loss depends on: name -> whether the gradient is finite, a bool
        tensor on its device.
    """
    finite: dict[str, Tensor] = {}

    def take(name: str, grad: Tensor) -> Tensor | None:
        finite[name] = _add(sums[name], grad, reduction)
        # What autograd keeps in its place takes no memory.
        return None if grad.is_sparse else grad.new_zeros(()).expand_as(grad)

    hooks = [
        param.register_hook(partial(take, name))  # type: ignore[no-untyped-call]
        for name, param in scored.items()
    ]
    try:
        torch.autograd.grad(loss, list(scored.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return finite


def _add_clipped(
    sums: Mapping[str, Tensor],
    scored: Mapping[str, Tensor],
    loss: Tensor,
    reduction: Reduction,
    clip_grad_norm: float,
) -> dict[str, Tensor]:
    """The same, each gradient scaled by what brings all of them to a norm."""
    grads = torch.autograd.grad(loss, list(scored.values()), allow_unused=True)
    found = {
        name: _dense(grad, sums[name])
        for name, grad in zip(scored, grads, strict=True)
        if grad is not None
    }
    if not found:
        return {}
    norms = [torch.linalg.vector_norm(grad) for grad in found.values()]
    total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    # As torch.nn.utils.clip_grad_norm_ does it, its 1e-6 included.
    scale = (clip_grad_norm / (total + 1e-6)).clamp(max=1.0)
    finite = {name: torch.isfinite(grad).all() for name, grad in found.items()}
    for name, grad in found.items():
        _add(sums[name], grad * scale.to(grad.device), reduction)
    return finite


def _dense(grad: Tensor, total: Tensor) -> Tensor:
    return (grad.to_dense() if grad.is_sparse else grad).to(total.dtype)


def _add(total: Tensor, grad: Tensor, reduction: Reduction) -> Tensor:
    """Add a gradient to its parameter's sum; whether it is finite, as a tensor."""
    grad = _dense(grad, total)
    if reduction in ("abs_of_sum", "retain_aware"):
        total.add_(grad)
    elif reduction == "sum_of_abs":
        total.add_(grad.abs())
    else:
        total.addcmul_(grad, grad)
    return torch.isfinite(grad).all()


@contextmanager
def _undisturbed(model: Model) -> Iterator[None]:
    """Put back what running a network changes: buffers, training modes, requires_grad flags."""
    if not isinstance(model, nn.Module):
        yield
        return
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    training = [(module, module.training) for module in model.modules()]
    flags = [(param, param.requires_grad) for param in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
        for module, mode in training:
            module.training = mode
        for param, flag in flags:
            param.requires_grad_(flag)
