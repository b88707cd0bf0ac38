"""Parameters that a loop moves, or puts in the place of others: masks and states follow them.

Accelerate, and with it transformers' Trainer, shards a model whose optimizer is there already, and
writes the sharded parameters into the optimizer's groups. torch's optimizers have no state by then
and need not notice; here the new parameters would have no mask, and all of them would move. A model
that goes to its device after its optimizer was made is the same matter.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor

from pecker_fast.backends.layout import positions_on
from pecker_fast.errors import PeckerError
from pecker_fast.optim.checkpoint import held_state, restore
from pecker_fast.optim.resolve import param_label
from pecker_fast.optim.sharded import (
    Share,
    is_sharded,
    refuse_different_masks,
    sharding,
    split_positions,
)
from pecker_fast.optim.state import ENTRY_KEYS, ParamState, check_param

__all__ = ["follow"]

_FLATTENED = (
    "loops that flatten parameters (DeepSpeed's ZeRO, FullyShardedDataParallel) leave no entries "
    "that a mask could name: shard with fully_shard (FSDP2)"
)


def follow(
    groups: list[dict[str, Any]],
    places: list[list[Tensor]],
    indices: dict[Tensor, Tensor],
    shares: dict[Tensor, Share],
    state: MutableMapping[Tensor, ParamState],
    start: Callable[[Tensor, dict[str, Any]], ParamState],
) -> set[Tensor]:
    """Move masks and the states under them to where the parameters are now.

    Without a mask new parameters start anew, as with torch. Collective where new parameters are
    sharded and masked.

    Args:
        groups: the optimizer's groups.
        places: the parameters that each of them had; brought up to date.
        indices: parameter -> salient positions held here; empty without a mask.
        shares: sharded parameter -> which slots of the whole compact state those are.
        state: the optimizer's state.
        start: (parameter, group) -> a state that has taken no step, in `state`.

    Returns:
        The parameters that are gone.

    Raises:
        PeckerError: under a mask a new parameter has another shape, is sharded anew or is one too
            many; nothing was changed. Or the masks differ between processes.
    """
    replaced = []
    known = set(indices) or {param for params in places for param in params}
    for number, group in enumerate(groups):
        params, before = group["params"], places[number] if number < len(places) else []
        new = [i for i, param in enumerate(params) if param not in known]
        taken = set(params)
        paired = len(params) == len(before) and not any(before[i] in taken for i in new)
        if indices and new and not paired:
            raise PeckerError(
                f"param_groups[{number}] has {len(params)} parameters and had {len(before)}, and "
                f"the mask does not know {len(new)} of them: use add_param_group(group, mask=...); "
                f"{_FLATTENED}"
            )
        for index in new if indices else ():
            _refuse_unlike(param_label(group, number, index), before[index], params[index])
            replaced.append((group, before[index], params[index]))
        for param in known & taken:
            if _left_behind(param, state.get(param), indices.get(param)):
                replaced.append((group, param, param))
    for group, old, param in replaced:
        same = sharding(old) == sharding(param)
        if old in indices:
            positions = indices.pop(old)
            if same:
                positions = positions_on(positions, param.device)
                if old in shares:
                    shares[param] = shares.pop(old)
            else:
                positions, shares[param] = split_positions(param, positions)
            indices[param] = positions
        if saved := state.pop(old, None):
            if not _steps(saved):  # nothing to copy, perhaps to another device
                saved = {key: value for key, value in saved.items() if key not in ENTRY_KEYS}
            elif not same:
                saved = held_state(saved, param, shares)
            restore(start(param, group), saved)
    refuse_different_masks(
        [param for _, old, param in replaced if old is not param and param in shares],
        [group["mask_digest"] or "" for group in groups],
    )
    places[:] = [list(group["params"]) for group in groups]
    gone = known.difference(indices if indices else [p for params in places for p in params])
    for param in gone:  # without a mask: what has taken steps stays, as with torch
        if param in state and not _steps(state[param]):
            del state[param]
    return gone


def _steps(state: ParamState | None) -> int:
    return int(state["step"]) if state else 0


def _left_behind(param: Tensor, state: ParamState | None, positions: Tensor | None) -> bool:
    """Whether all that is kept for a parameter is on another device, and no step was taken."""
    held = [value.device for key, value in (state or {}).items() if key in ENTRY_KEYS]
    if not held and positions is not None:
        held = [positions.device]
    return bool(held) and param.device not in held and not _steps(state)


def _refuse_unlike(label: str, old: Tensor, new: Tensor) -> None:
    check_param(label, new)
    if old.shape != new.shape:
        raise PeckerError(
            f"parameter {label!r} of shape {tuple(old.shape)} was replaced by one of shape "
            f"{tuple(new.shape)}: {_FLATTENED}"
        )
    if is_sharded(old) and sharding(old) != sharding(new):
        raise PeckerError(
            f"the sharded parameter {label!r} was replaced by one that is not sharded alike: make "
            "the optimizer anew and load its state_dict"
        )
