"""What the processes of test_dcp.py do: importable by name."""

import copy
import os

import torch
import torch.distributed.checkpoint as dcp
from sharded_jobs import (
    BASE,
    make_mask,
    make_network,
    message_of,
    shard,
    states,
    train_on_gradients,
    weights,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from pecker_fast.optim.adamw import MaskedAdamW

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
FULL = StateDictOptions(full_state_dict=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def make(case, sharded, seed):
    """A network and its optimizer, as the case says."""
    options = {key: value for key, value in case.items() if key not in ("dtype", "masked")}
    network = make_network(getattr(torch, case.get("dtype", "float32")), seed)
    if sharded:
        network = shard(network)
    mask = make_mask() if case.get("masked", True) else None
    return network, MaskedAdamW(network.named_parameters(), **{**BASE, **options}, mask=mask)


def outcome(network, optimizer):
    return {"weights": weights(network), "state": states(optimizer)}


def save(ranks, network, optimizer, way, path):
    """Into a folder, or in the way "full" into a file."""
    if way == "own dicts":
        saved = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.save(saved, checkpoint_id=path)
    elif way in ("full", "from the first"):
        saved = get_state_dict(network, optimizer, options=FULL)
        if ranks.is_first:
            torch.save(saved, path)
        ranks.wait()
    else:
        model, optim = get_state_dict(network, optimizer, options=FLAT if way == "flat" else None)
        dcp.save({"model": model, "optimizer": optim}, checkpoint_id=path)


def load(ranks, network, optimizer, way, path):
    if way == "own dicts":
        saved = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(saved, checkpoint_id=path)
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        return
    if way == "full":
        (model, optim), options = torch.load(path, weights_only=True), FULL
    elif way == "from the first":
        options = FROM_FIRST
        model, optim = torch.load(path, weights_only=True) if ranks.is_first else ({}, {})
    else:
        options = FLAT if way == "flat" else StateDictOptions()
        model, optim = get_state_dict(network, optimizer, options=options)
        dcp.load(saved := {"model": model, "optimizer": optim}, checkpoint_id=path)
        model, optim = saved["model"], saved["optimizer"]
    # One by one: `set_state_dict` skips the model's broadcast where it is given an empty dict.
    set_model_state_dict(network, model, options=options)
    set_optimizer_state_dict(network, optimizer, optim, options=options)


def begin(ranks, cases, ways, sharded, folder, steps):
    """Train, save, and train on."""
    outcomes = []
    for number, case in enumerate(cases):
        network, optimizer = make(case, sharded, seed=1)
        train_on_gradients(network, optimizer, range(steps))
        saved = outcome(network, optimizer)
        for way in ways:
            save(ranks, network, optimizer, way, os.path.join(folder, f"{number} {way}"))
        unmoved = outcome(network, optimizer)
        train_on_gradients(network, optimizer, range(steps, steps + 3))
        after = outcome(network, optimizer)
        outcomes.append({"saved": saved, "unmoved": unmoved, "after": after})
    return outcomes


def go_on(ranks, cases, ways, sharded, folder, steps):
    """What a run that was saved in each of the ways becomes in other processes."""
    outcomes = []
    for number, case in enumerate(cases):
        for way in ways:
            network, optimizer = make(case, sharded, seed=7)
            load(ranks, network, optimizer, way, os.path.join(folder, f"{number} {way}"))
            loaded = outcome(network, optimizer)
            train_on_gradients(network, optimizer, range(steps, steps + 3))
            outcomes.append({"loaded": loaded, "after": outcome(network, optimizer)})
    return outcomes


def carry(ranks, ways, sharded, folder):
    """A run whose mask was refreshed, saved, loaded where there is room for it and where not."""
    first, second = make_mask(), make_mask(seed=3)
    network, optimizer = make({}, sharded, seed=1)
    train_on_gradients(network, optimizer, range(2))
    optimizer.set_mask(second, "carry")
    train_on_gradients(network, optimizer, range(2, 4))
    for way in ways:
        save(ranks, network, optimizer, way, os.path.join(folder, way))
    train_on_gradients(network, optimizer, range(4, 6))
    heard, resumed = {}, {}
    for way in ways:
        for room in (False, True):
            other, others = make({}, sharded, seed=7)
            others.set_mask(second, "carry" if room else "reset")
            path = os.path.join(folder, way)
            message = message_of(lambda: load(ranks, other, others, way, path))  # noqa: B023
            if room:
                train_on_gradients(other, others, range(4, 6))
                resumed[way] = outcome(other, others)
            else:
                heard[way] = message
    assert first != second
    return {"after": outcome(network, optimizer), "heard": heard, "resumed": resumed}


def exchange_with_torch(ranks):
    """Without a mask: torch's AdamW, sharded, takes over, and hands back."""
    network, ours = make({"masked": False}, True, seed=1)
    twin = shard(make_network())
    theirs = torch.optim.AdamW(twin.parameters(), **BASE)
    train_on_gradients(network, ours, range(2))
    twin.load_state_dict(network.state_dict())
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # it keeps the dict's tensors
    train_on_gradients(network, ours, range(2, 4))
    train_on_gradients(twin, theirs, range(2, 4))
    taken = {"ours": weights(network), "theirs": weights(twin)}
    again = MaskedAdamW(twin.named_parameters(), **BASE)
    again.load_state_dict(theirs.state_dict())
    train_on_gradients(network, ours, range(4, 6))
    train_on_gradients(twin, again, range(4, 6))
    return {"taken": taken, "back": {"ours": weights(network), "theirs": weights(twin)}}


def load_what_does_not_fit(ranks, folder):
    """A checkpoint of another mask."""
    network, optimizer = make({}, True, seed=1)
    train_on_gradients(network, optimizer, range(2))
    path = os.path.join(folder, "full")
    save(ranks, network, optimizer, "full", path)
    before = outcome(network, optimizer)
    optimizer.set_mask(make_mask(seed=3))
    changed = outcome(network, optimizer)
    heard = message_of(lambda: load(ranks, network, optimizer, "full", path))
    return {
        "before": before,
        "changed": changed,
        "now": outcome(network, optimizer),
        "heard": heard,
    }
