"""What the processes of test_sharded.py do with torch alone: importable by name."""

import os

import torch
import torch.distributed as dist
from classes import batches_of, classifier, loss_on
from loop_pages import assert_same, check, copied, run
from sharded_jobs import weights
from tiny_language import batches, tiny_llama, tokenizer
from torch.distributed.fsdp import fully_shard


def learn_sharded(ranks, folder):
    """docs/loops/fsdp2.md, and the same from its checkpoint in another model."""
    os.chdir(folder)
    model = classifier()
    before, loss = copied(model), loss_on(model)
    names = run("fsdp2", {"model": model, "data": batches_of(60, ranks)}, 0, 1)
    saved = weights(model)
    check(before, saved, names["mask"])
    whole = classifier()
    whole.load_state_dict(saved)
    assert loss_on(whole) < 0.8 * loss
    held = torch.tensor(sum(s["exp_avg_sq"].numel() for s in names["optimizer"].state.values()))
    dist.all_reduce(held)
    assert held == sum(positions.numel() for positions in names["mask"].indices.values())
    names["save"]("checkpoint")
    again = run("fsdp2", {"model": classifier(seed=8), "data": batches_of(60, ranks)}, 0)
    again["load"]("checkpoint")
    for going_on in (names, again):
        run("fsdp2", going_on, 1)
    assert_same(weights(again["model"]), weights(model))
    return True


def learn_new_tokens(ranks, sharded):
    """docs/loops/new-tokens.md; returns how many entries moved, and the loss before and after."""
    model, tokens = tiny_llama(tied=not sharded), tokenizer()
    texts = ["the zebra sees the gnu", "the gnu likes a zebra"] * 2
    names = {"model": model, "tokenizer": tokens, "first_new": len(tokens), "device": "cpu"}
    tokens.add_tokens(["zebra", "gnu"])
    run("new-tokens", names, 0)
    before = copied(model)
    if sharded:
        fully_shard(model)
    losses = []
    names["data"] = list(batches(texts, tokens)) * 10
    handle = model.register_forward_hook(lambda *call: losses.append(call[-1].loss.item()))
    run("new-tokens", names, 1)
    handle.remove()
    after = weights(model)
    check(before, after, names["mask"])
    rows = {name: (after[name] != value).nonzero()[:, 0].unique() for name, value in before.items()}
    return {"moved": {name: row.tolist() for name, row in rows.items()}, "losses": losses}
