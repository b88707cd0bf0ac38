"""MaskedAdamW's state: what is valid, how it starts, how it survives a new mask or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pecker_fast.backends.work import Entry
from pecker_fast.errors import PeckerError
from pecker_fast.optim_mask import param_label

__all__ = [
    "ParamState",
    "carry_state",
    "check_checkpoint",
    "check_group",
    "grow_state",
    "init_state",
    "make_entry",
    "moment_names",
    "restore_state",
    "steps_on_cpu",
]

ParamState: TypeAlias = dict[str, Tensor]

_PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# One value per salient entry. `step` is one per parameter, `entry_start` is made by carry_state.
_ENTRY_KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master")


def check_group(group: dict[str, Any], group_index: int) -> None:
    """Refuse hyperparameters and parameters that AdamW cannot work with.

    Raises:
        PeckerError: a value out of range, or a parameter that is complex or not floating point.
        TypeError: betas that are tensors.
    """
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise PeckerError(f"lr must have one element, got a tensor of shape {tuple(lr.shape)}")
    if not 0.0 <= float(lr):
        raise PeckerError(f"Invalid learning rate: {lr} (expected at least 0)")
    if not 0.0 <= eps:
        raise PeckerError(f"Invalid epsilon value: {eps} (expected at least 0)")
    if any(isinstance(beta, Tensor) for beta in group["betas"]):
        raise TypeError("betas must be floats, got tensors: pass beta.item()")
    for i, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise PeckerError(f"Invalid beta parameter at index {i}: {beta} (expected [0, 1))")
    if not 0.0 <= weight_decay:
        raise PeckerError(f"Invalid weight_decay value: {weight_decay} (expected at least 0)")
    clip_value = group["clip_value"]
    if clip_value is not None and not 0.0 < clip_value:
        raise PeckerError(f"Invalid clip_value: {clip_value} (expected above 0, or None)")
    if group["foreach"] and group["fused"]:
        raise PeckerError("`foreach` and `fused` cannot both be True: both are ignored here")
    if group["differentiable"]:
        raise PeckerError(
            "differentiable=True is not supported: the step is one kernel that autograd cannot "
            "see; use torch.optim.AdamW"
        )
    for index, param in enumerate(group["params"]):
        label = param_label(group, group_index, index)
        if param.dtype not in _PARAM_DTYPES:
            kind = "complex" if param.is_complex() else str(param.dtype)
            raise PeckerError(
                f"parameter {label!r} is {kind}: expected float32, float64, bfloat16 or float16"
            )
        if hasattr(param, "to_local"):
            raise PeckerError(
                f"parameter {label!r} is a DTensor: sharded parameters are not supported; pass "
                "ordinary ones, as DistributedDataParallel has them"
            )


def init_state(
    param: Tensor, indices: Tensor | None, group: dict[str, Any], master: bool
) -> ParamState:
    """The state of a parameter that has taken no step.

    Args:
        param: the parameter.
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
    starts: tuple[int, ...] = (0,)
    start_class = None
    if "entry_start" in state:
        distinct, inverse = torch.unique(state["entry_start"], return_inverse=True)
        starts, start_class = tuple(distinct.tolist()), inverse.int()
    return Entry(
        label,
        param,
        group_index,
        indices,
        state.get("exp_avg"),
        state["exp_avg_sq"],
        state.get("max_exp_avg_sq"),
        state.get("master"),
        starts,
        start_class,
    )


def moment_names(group: dict[str, Any]) -> frozenset[str]:
    """The names of the moments that a group's hyperparameters need."""
    exp_avg = {"exp_avg"} if group["betas"][0] != 0 else set()
    max_exp_avg_sq = {"max_exp_avg_sq"} if group.get("amsgrad") else set()
    return frozenset({"exp_avg_sq"} | exp_avg | max_exp_avg_sq)


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
    for key in _ENTRY_KEYS:
        if key in new and key in old:
            new[key][kept] = old[key].reshape(-1)[slots]
    start = torch.full_like(new_indices, int(old["step"].item()))
    start[kept] = old["entry_start"][slots] if "entry_start" in old else 0
    if bool(start.any()):
        new["entry_start"] = start


def check_checkpoint(
    groups: list[dict[str, Any]], indices: Mapping[Tensor, Tensor], state_dict: dict[str, Any]
) -> None:
    """Refuse a checkpoint that does not fit, before anything is changed.

    Args:
        groups: the optimizer's parameter groups.
        indices: parameter -> salient positions; empty without a mask.
        state_dict: the checkpoint, of this class or of torch.optim.AdamW.

    Raises:
        PeckerError: made under another mask (or without one), of other shapes, or with options
            that are not supported. A wrong number of groups or parameters is left to torch.
    """
    saved_groups = state_dict["param_groups"]
    for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=False)):
        ours, theirs = group["mask_digest"], saved.get("mask_digest")
        if ours != theirs:
            raise PeckerError(
                f"the checkpoint's group {number} was trained with {_mask_name(theirs)}, this "
                f"optimizer has {_mask_name(ours)}: construct it with the mask of the checkpoint, "
                "then change masks with set_mask"
            )
        if saved.get("differentiable"):
            raise PeckerError("the checkpoint has differentiable=True, which is not supported")
        for index, (param, key) in enumerate(zip(group["params"], saved["params"], strict=False)):
            state = state_dict["state"].get(key, {})
            shape = indices.get(param, param).shape
            _check_state(param_label(group, number, index), shape, state, saved)


def _check_state(
    label: str, shape: torch.Size, state: dict[str, Any], group: dict[str, Any]
) -> None:
    for key in (*_ENTRY_KEYS, "entry_start"):
        if key in state and tuple(state[key].shape) != tuple(shape):
            raise PeckerError(
                f"{key} of {label!r} in the checkpoint has shape {tuple(state[key].shape)}, "
                f"expected {tuple(shape)}: it belongs to another model or mask"
            )
    taken = float(state.get("step", 0))
    needed = moment_names(group)
    missing = needed - state.keys()
    if taken and missing:
        raise PeckerError(
            f"the checkpoint has no {', '.join(sorted(missing))} for {label!r} although it took "
            f"{taken:.0f} steps: it was not saved by an AdamW with these options"
        )


def restore_state(state: ParamState, saved: dict[str, Any]) -> None:
    """Copy a checkpoint's values into a fresh state, in the state's own dtypes.

    torch's own loading casts every tensor to the parameter's dtype, which ruins int32 starts and
    float32 moments of bfloat16 parameters; so the dict's tensors are read here, as they are.

    Args:
        state: from `init_state`; changed in place.
        saved: the same parameter's state in the dict, possibly empty.
    """
    for key, value in saved.items():
        if key == "step":
            state["step"].fill_(float(value))
        elif key == "entry_start":
            state[key] = value.to(state["exp_avg_sq"].device, torch.int32, copy=True)
        elif key in state:
            state[key].copy_(value)


def _mask_name(digest: str | None) -> str:
    return "no mask" if digest is None else f"mask {digest[:12]}"


def steps_on_cpu(states: Mapping[Any, ParamState], keys: list[Any]) -> dict[Any, ParamState]:
    """The states at `keys` with their step counts on the CPU, copied in one go."""
    found = {key: states[key] for key in keys if states.get(key)}
    away = {key: s for key, s in found.items() if s["step"].device.type != "cpu"}
    if not away:
        return {}
    first = next(iter(away.values()))["step"].device
    steps = torch.stack([s["step"].to(first) for s in away.values()]).cpu()
    return {
        key: {**s, "step": step.clone()} for (key, s), step in zip(away.items(), steps, strict=True)
    }
