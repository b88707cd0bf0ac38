"""MaskedAdamW's checkpoints, which do not depend on how many processes save or load them.

Under a mask, state is saved whole: a process that holds a part of a sharded parameter gathers the
others, at most the mask's density of what dense state would be. Without a mask, the state of a
sharded parameter consists of DTensors placed as it is, as with torch.optim.AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pecker_fast.errors import PeckerError
from pecker_fast.optim.resolve import param_label
from pecker_fast.optim.sharded import Share, is_sharded, row_share
from pecker_fast.optim.state import ENTRY_KEYS, ParamState, moment_names, users_entries

__all__ = [
    "SavedOptimizer",
    "check_checkpoint",
    "complete_checkpoint",
    "held_part",
    "held_state",
    "restore",
    "restored",
]


def complete_checkpoint(
    saved: dict[str, Any], groups: list[dict[str, Any]], shares: Mapping[Tensor, Share]
) -> None:
    """Make the dict of torch's `Optimizer.state_dict` whole, and loadable by torch.optim.AdamW.

    Collective where parameters are sharded and masked.

    Args:
        saved: the dict, whose states are those of this process; changed in place.
        groups: the optimizer's groups.
        shares: sharded and masked parameter -> which part of the state is held here.
    """
    states = saved["state"]
    for group, live in zip(saved["param_groups"], groups, strict=True):
        for key, param in zip(group["params"], live["params"], strict=True):
            if is_sharded(param) and states.get(key):
                states[key] = _whole(states[key], param, shares.get(param))
        if not group["capturable"]:  # where torch.optim.AdamW has it
            states.update(_steps_on_cpu(states, group["params"]))
        group["carried"] = _count_carried(states, group)
        if group["mask_digest"] is not None:
            continue
        for key in group["params"]:
            # torch expects exp_avg; zeros are exact, since beta1 = 0 overwrites it.
            state = states.get(key)
            if state and "exp_avg" not in state:
                states[key] = {**state, "exp_avg": torch.zeros_like(state["exp_avg_sq"])}


def _whole(state: ParamState, param: Any, share: Share | None) -> ParamState:
    """A sharded parameter's state, `step` aside: gathered, or as DTensors if there is no mask."""
    from torch.distributed.tensor import DTensor

    whole = {"step": state["step"], **users_entries(state)}
    for key in sorted(state.keys() - whole.keys()):  # in one order on all processes
        if share is not None:
            whole[key] = share.gather(state[key], param)
        else:
            whole[key] = DTensor.from_local(
                state[key],
                param.device_mesh,
                param.placements,
                run_check=False,
                shape=param.shape,
                stride=param.stride(),
            )
    return whole


def held_part(
    groups: list[dict[str, Any]], shares: Mapping[Tensor, Share], state_dict: dict[str, Any]
) -> dict[str, Any]:
    """A checkpoint with the parts of it that are held here, as ordinary tensors.

    Args:
        groups: the optimizer's groups.
        shares: sharded and masked parameter -> which part of the state is held here.
        state_dict: the checkpoint. Values that are DTensors are gathered (a collective) unless they
            are placed as their parameter.
    """
    states = dict(state_dict["state"])
    for live, group in zip(groups, state_dict["param_groups"], strict=False):  # torch counts them
        for param, key in zip(live["params"], group["params"], strict=False):
            if key in states:
                states[key] = held_state(states[key], param, shares)
    return {**state_dict, "state": states}


def held_state(state: ParamState, param: Tensor, shares: Mapping[Tensor, Share]) -> ParamState:
    """What is held here of one parameter's whole state; see `held_part`."""
    users = users_entries(state)
    return {
        name: value if name == "step" or name in users else _part(value, param, shares)
        for name, value in state.items()
    }


def _part(value: Any, param: Any, shares: Mapping[Tensor, Share]) -> Any:
    if is_sharded(value):
        placement = (value.device_mesh, value.placements)
        if is_sharded(param) and (param.device_mesh, param.placements) == placement:
            return value.to_local()
        value = value.full_tensor()
    if is_sharded(param):
        return (shares.get(param) or row_share(param)).part(value)
    return value


def _count_carried(states: Mapping[Any, ParamState], group: dict[str, Any]) -> int:
    """How many of a saved group's parameters have entries that became salient late."""
    return sum("entry_start" in states.get(key, {}) for key in group["params"])


def check_checkpoint(
    groups: list[dict[str, Any]],
    indices: Mapping[Tensor, Tensor],
    shares: Mapping[Tensor, Share],
    state_dict: dict[str, Any],
) -> None:
    """Refuse a checkpoint that does not fit, before anything is changed.

    Args:
        groups: the optimizer's parameter groups.
        indices: parameter -> salient positions; empty without a mask.
        shares: sharded parameter -> which part of the state is held here.
        state_dict: the checkpoint, whole, of this class or of torch.optim.AdamW.

    Raises:
        PeckerError: made under another mask (or without one), of other shapes, with options
            that are not supported, or without the `entry_start` that it was saved with. A wrong
            number of groups or parameters is left to torch.
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
            if param in shares:
                shape = torch.Size([shares[param].bounds[-1]])
            _check_state(param_label(group, number, index), shape, state, saved)
        found = _count_carried(state_dict["state"], saved)
        if found < saved.get("carried", 0):
            raise PeckerError(
                f"the checkpoint's group {number} was saved after set_mask(mask, 'carry'), but "
                f"entry_start is missing for {saved['carried'] - found} of its parameters: "
                "torch.distributed.checkpoint loads only what the optimizer has already; call "
                "set_mask(mask, 'carry') with the optimizer's own mask before loading"
            )


def _check_state(
    label: str, shape: torch.Size, state: dict[str, Any], group: dict[str, Any]
) -> None:
    for key in (*ENTRY_KEYS, "entry_start"):
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


def restored(
    incoming: dict[str, Any],
    groups: list[dict[str, Any]],
    old: defaultdict[Any, ParamState],
    new_state: Callable[[Tensor, dict[str, Any]], ParamState],
) -> defaultdict[Any, ParamState]:
    """The state that a checkpoint describes, with what users keep in it under keys of their own.

    Args:
        incoming: the checkpoint, from `held_part`.
        groups: groups with the optimizer's parameters and the checkpoint's hyperparameters.
        old: the optimizer's state; emptied on the way, so that both need not fit into memory.
        new_state: (parameter, group) -> a state that has taken no step.
    """
    keys = list(chain.from_iterable(group["params"] for group in incoming["param_groups"]))
    ours = set(keys)
    state: defaultdict[Any, ParamState] = defaultdict(dict)
    state.update({key: value for key, value in incoming["state"].items() if key not in ours})
    next_key = iter(keys)
    for group in groups:
        for param in group["params"]:
            saved = incoming["state"].get(next(next_key), {})
            if saved or param in old:
                old.pop(param, None)
                state[param] = new_state(param, group)
                restore(state[param], saved)
    return state


def restore(state: ParamState, saved: dict[str, Any]) -> None:
    """Copy a checkpoint's values into a fresh state, in the state's own dtypes.

    torch's own loading casts every tensor to the parameter's dtype, which ruins int32 starts and
    float32 moments of bfloat16 parameters; so the dict's tensors are read here, as they are.
    """
    for key, value in saved.items():
        if key == "step":
            state["step"].fill_(float(value))
        elif key == "entry_start":
            state[key] = value.to(state["exp_avg_sq"].device, torch.int32, copy=True)
        elif key in state:
            state[key].copy_(value)
    state.update(users_entries(saved))


def _mask_name(digest: str | None) -> str:
    return "no mask" if digest is None else f"mask {digest[:12]}"


def _steps_on_cpu(states: Mapping[Any, ParamState], keys: list[Any]) -> dict[Any, ParamState]:
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


class SavedOptimizer(Optimizer):
    """An optimizer whose checkpoints, copies and pickles are whole."""

    _indices: dict[Tensor, Tensor]
    _shares: dict[Tensor, Share]
    _incoming: dict[str, Any] | None = None
    _constructed = False

    def _follow(self) -> None:
        """Let mask and state follow parameters that were replaced."""
        raise NotImplementedError

    def _outdate(self) -> None:
        """The prepared work no longer holds."""
        raise NotImplementedError

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> ParamState:
        """The first state of a parameter."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.AdamW's, and loadable by it if there is no mask.

        The mask is not part of it: keep it beside. "mask_digest" in each group tells which it was.
        """
        self._follow()
        saved: dict[str, Any] = super().state_dict()
        complete_checkpoint(saved, self.param_groups, self._shares)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class, or without a mask one of torch.optim.AdamW.

        Values are copied, in the dtypes they were saved in. The optimizer must have been made
        with the mask of the checkpoint.

        Raises:
            PeckerError: the checkpoint does not fit (see `checkpoint.check_checkpoint`); the
                optimizer is unchanged.
        """

        def keep(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            check_checkpoint(self.param_groups, self._indices, self._shares, state_dict)
            self._incoming = held_part(self.param_groups, self._shares, state_dict)

        self._follow()
        # Registered last, so it sees the dict after the user's hooks; __setstate__ then reads it.
        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._incoming = None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        ours = (
            "_backend_name", "_master_weights", "_indices", "_places", "_shares", "_mask_digests",
            "_released", "_traceable",
        )  # fmt: skip
        return {**state, **{name: self.__dict__[name] for name in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by load_state_dict (on a live optimizer), deepcopy and pickle (on a new one)."""
        if self._incoming is not None:
            groups = state["param_groups"]
            for group, old_group in zip(groups, self.param_groups, strict=True):
                for key, value in old_group.items():  # absent from torch's or older checkpoints
                    group.setdefault(key, value)
            new = restored(self._incoming, groups, self.state, self._new_state)
            state = {**state, "state": new}
        super().__setstate__(state)
        self._outdate()
        self._constructed = True
