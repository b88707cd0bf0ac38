"""MaskedAdamW's state: what is valid, how it starts, how it survives a new mask."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from pecker_fast.backends.work import PARAM_DTYPES, Entry, start_classes
from pecker_fast.errors import PeckerError, PeckerRuntimeError
from pecker_fast.optim.resolve import param_label
from pecker_fast.optim.sharded import check_sharding, is_sharded

__all__ = [
    "ENTRY_KEYS",
    "ParamState",
    "carry_state",
    "check_group",
    "check_param",
    "grow_state",
    "init_state",
    "make_entry",
    "moment_names",
    "refuse_fused_on_meta",
    "users_entries",
]

ParamState: TypeAlias = dict[str, Tensor]

# One value per salient entry. `step` is one per parameter, `entry_start` is made by carry_state.
ENTRY_KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master")
_OWN_KEYS = frozenset({"step", "entry_start", *ENTRY_KEYS})


def check_group(group: dict[str, Any], group_index: int) -> None:
    """Refuse hyperparameters and parameters that AdamW cannot work with.

    Raises:
        PeckerError: a value out of range, or a parameter as in `check_param`.
        PeckerRuntimeError: flags that exclude each other.
    """
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    for label, value in (("lr", lr), *((f"betas[{i}]", b) for i, b in enumerate(group["betas"]))):
        if isinstance(value, Tensor):
            if value.numel() != 1:
                shape = tuple(value.shape)
                raise PeckerError(f"Tensor {label} must be 1-element, got shape {shape}")
            if group["foreach"] and not group["capturable"]:
                raise PeckerError(
                    f"{label} as a Tensor is not supported for capturable=False and foreach=True: "
                    "drop foreach, which selects nothing here"
                )
    if not 0.0 <= float(lr):
        raise PeckerError(f"Invalid learning rate: {lr} (expected at least 0)")
    if not 0.0 <= eps:
        raise PeckerError(f"Invalid epsilon value: {eps} (expected at least 0)")
    for i, beta in enumerate(group["betas"]):
        if not 0.0 <= float(beta) < 1.0:
            raise PeckerError(f"Invalid beta parameter at index {i}: {beta} (expected [0, 1))")
    if len({isinstance(beta, Tensor) for beta in group["betas"]}) > 1:
        raise PeckerError("betas must be either both floats or both Tensors, got one of each")
    if not 0.0 <= weight_decay:
        raise PeckerError(f"Invalid weight_decay value: {weight_decay} (expected at least 0)")
    clip_value = group["clip_value"]
    if clip_value is not None and not 0.0 < clip_value:
        raise PeckerError(f"Invalid clip_value: {clip_value} (expected above 0, or None)")
    if group["foreach"] and group["fused"]:
        raise PeckerRuntimeError(
            "`fused` and `foreach` cannot be `True` together: drop one, neither selects anything"
        )
    if group["differentiable"]:
        also = "`fused` does not support `differentiable`, and " if group["fused"] else ""
        raise PeckerRuntimeError(
            f"{also}differentiable=True is not supported: the step is one kernel that autograd "
            "cannot see; use torch.optim.AdamW"
        )
    for index, param in enumerate(group["params"]):
        check_param(param_label(group, group_index, index), param)


def check_param(label: str, param: Tensor) -> None:
    """Refuse a parameter that AdamW cannot update; one without gradient may have any dtype.

    Raises:
        PeckerError: it is complex, not floating point, or sharded otherwise than by rows.
    """
    if param.dtype not in PARAM_DTYPES and (param.requires_grad or param.grad is not None):
        kind = "complex" if param.is_complex() else str(param.dtype)
        raise PeckerError(
            f"parameter {label!r} is {kind}: expected float32, float64, bfloat16 or float16"
        )
    if is_sharded(param):
        check_sharding(label, param)


def refuse_fused_on_meta(groups: list[dict[str, Any]]) -> None:
    """Refuse fused=True for gradients without memory, at a step, as torch does.

    Raises:
        PeckerRuntimeError: there are such gradients.
    """
    for number, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            if group["fused"] and param.is_meta and param.grad is not None:
                raise PeckerRuntimeError(
                    "`fused=True` requires all the params to be floating point Tensors of "
                    f"supported devices, but {param_label(group, number, index)!r} is on meta: "
                    "materialize the model before the optimizer is made"
                )


def init_state(
    param: Tensor, indices: Tensor | None, group: dict[str, Any], master: bool
) -> ParamState:
    """The state of a parameter that has taken no step.

    Args:
        param: the parameter; of a sharded one, as everywhere below, its local tensor.
        indices: (nnz,) int32 salient positions, or None for all.
        group: its parameter group.
        master: keep float32 masters, if the parameter is of low precision.

    Returns:
        step: () float32, on the CPU unless capturable. exp_avg (absent when beta1 is 0),
        exp_avg_sq, max_exp_avg_sq (amsgrad) and master: (nnz,) under a mask, else of the
        parameter's shape and strides; float64 for a float64 parameter, else float32.
    """
    step_device = param.device if group["capturable"] else torch.device("cpu")
    state = {"step": torch.zeros((), dtype=torch.float32, device=step_device)}
    for key in sorted(moment_names(group)):
        state[key] = _zeros(param, indices)
    if master and param.dtype in (torch.bfloat16, torch.float16):
        values = param.detach()
        if indices is not None:
            values = values.reshape(-1)[indices.long()]
        state["master"] = _zeros(param, indices).copy_(values)
    return state


def grow_state(
    label: str, state: ParamState, param: Tensor, indices: Tensor | None, group: dict[str, Any]
) -> None:
    """Add the moments that hyperparameters changed since construction ask for, before any step.

    Raises:
        PeckerError: the parameter has taken steps, so the moment's history is lost.
    """
    for key in sorted(moment_names(group) - state.keys()):
        if state["step"].item() > 0:
            cause = "beta1 rose from 0" if key == "exp_avg" else "amsgrad was switched on"
            raise PeckerError(
                f"{cause}, but {label!r} has taken {state['step'].item():.0f} steps without "
                f"{key}: set it before the first step, or make a new optimizer"
            )
        state[key] = _zeros(param, indices)


def make_entry(
    label: str, param: Tensor, group_index: int, indices: Tensor | None, state: ParamState
) -> Entry:
    """What a backend needs to know of one parameter."""
    return Entry(
        label,
        param,
        group_index,
        indices,
        state.get("exp_avg"),
        state["exp_avg_sq"],
        state.get("max_exp_avg_sq"),
        state.get("master"),
        *start_classes(state.get("entry_start")),
    )


def moment_names(group: dict[str, Any]) -> frozenset[str]:
    """The names of the moments that a group's hyperparameters need."""
    beta1 = group["betas"][0]  # a tensor's value may change, and reading it may wait for a device
    exp_avg = {"exp_avg"} if isinstance(beta1, Tensor) or beta1 != 0 else set()
    max_exp_avg_sq = {"max_exp_avg_sq"} if group.get("amsgrad") else set()
    return frozenset({"exp_avg_sq"} | exp_avg | max_exp_avg_sq)


def users_entries(state: ParamState) -> ParamState:
    """What a user keeps in a parameter's state, beside what this module puts there."""
    return {key: value for key, value in state.items() if key not in _OWN_KEYS}


def _zeros(param: Tensor, indices: Tensor | None) -> Tensor:
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    if indices is None:
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    return torch.zeros(indices.numel(), dtype=dtype, device=param.device)


def carry_state(
    new: ParamState, new_indices: Tensor, old: ParamState, old_indices: Tensor | None
) -> None:
    """Keep what `old` knows of the entries that stay salient under a new mask.

    An entry that becomes salient starts with zero moments and, through `entry_start` (int32, the
    parameter's step count at which it became salient), with its own bias correction.

    Args:
        new: from `init_state` for the new mask; changed in place.
        new_indices: (nnz,) int32, the new mask's sorted positions.
        old: the state under the old mask.
        old_indices: the old mask's sorted positions, or None if all entries were salient.
    """
    if old_indices is None:
        slots = new_indices.long()
        kept = torch.ones_like(new_indices, dtype=torch.bool)
    elif old_indices.numel() == 0:
        slots = torch.zeros_like(new_indices, dtype=torch.long)
        kept = torch.zeros_like(new_indices, dtype=torch.bool)
    else:
        slots = torch.searchsorted(old_indices, new_indices).clamp_(max=old_indices.numel() - 1)
        kept = old_indices[slots] == new_indices
    slots = slots[kept]

    new["step"].copy_(old["step"])
    for key in ENTRY_KEYS:
        if key in new and key in old:
            new[key][kept] = old[key].reshape(-1)[slots]
    start = torch.full_like(new_indices, int(old["step"].item()))
    start[kept] = old["entry_start"][slots] if "entry_start" in old else 0
    # Where all of it is 0, too: which tensors a state has must not depend on the process, nor on
    # the mask, since torch.distributed.checkpoint loads what is there already and nothing else.
    new["entry_start"] = start
