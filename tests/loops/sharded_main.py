"""What torchrun starts for test_sharded.py: Trainer and Accelerate shard a model with FSDP 2."""

import gc
import os
import sys
import weakref

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, DistributedType, PartialState
from loop_pages import assert_same, check, copied, run
from sharded_jobs import whole
from tiny_language import batches, examples, loss_of, sentences, tiny_llama

from pecker_fast import SaliencyMask

_make = AcceleratorState.__init__


def _shard_on_a_cpu(self, *args, fsdp_plugin=None, **options):
    """Accelerate shards on accelerators only; nothing in what it does there needs one."""
    _make(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # for later ones


def weights(model):
    return {name: whole(param.detach()).clone() for name, param in model.named_parameters()}


def check_shares(optimizer, mask):
    """Each salient entry's state is on one of the processes, and no other's is anywhere."""
    held = torch.tensor(sum(s["exp_avg_sq"].numel() for s in optimizer.state.values()))
    assert 0 < held < len_of(mask), "one process has all of it"
    dist.all_reduce(held)
    assert held == len_of(mask)


def len_of(mask):
    return sum(positions.numel() for positions in mask.indices.values())


def loss_with(found):
    model = tiny_llama()
    model.load_state_dict(found)
    return loss_of(model)


def trainer(mask):
    model = tiny_llama()
    before, loss = copied(model), loss_of(model)
    whole_ones = [weakref.ref(param) for param in model.parameters()]
    names = run("trainer", {"model": model, "texts": examples(sentences(64))}, 0)
    made = []
    make = names["trainer"]
    names["trainer"] = lambda **options: made.append(make(**options)) or made[-1]
    run("trainer", names, 2)
    after = weights(model)
    check(before, after, mask)
    check_shares(made[0].optimizer.optimizer, mask)
    gc.collect()
    assert not any(param() is not None for param in whole_ones), "whole parameters live on"
    assert loss_with(after) < loss - 0.03
    again = run("trainer", {"model": tiny_llama(), "texts": examples(sentences(64))}, 0)
    options = made[0].args.fsdp_config["transformer_layer_cls_to_wrap"]
    other = again["trainer"](fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": options})
    other.train(resume_from_checkpoint="run/checkpoint-4")
    assert_same(weights(again["model"]), after)


def accelerate(mask):
    names = {"model": tiny_llama(), "data": batches(sentences(64))}
    before, loss = copied(names["model"]), loss_of(names["model"])
    run("accelerate", names, 0, 1)
    saved = weights(names["model"])
    check(before, saved, mask)
    check_shares(names["optimizer"].optimizer, mask)
    assert loss_with(saved) < loss - 0.03
    again = run("accelerate", {"model": tiny_llama(), "data": batches(sentences(64))}, 0)
    again["accelerator"].load_state("state")
    assert_same(weights(again["model"]), saved)
    for going_on in (names, again):
        run("accelerate", going_on, 1)
    assert_same(weights(again["model"]), weights(names["model"]))


if __name__ == "__main__":
    AcceleratorState.__init__ = _shard_on_a_cpu
    os.environ["ACCELERATE_USE_CPU"] = "true"
    mask = SaliencyMask.load("mask.safetensors", tiny_llama())
    trainer(mask)
    AcceleratorState._reset_state(reset_partial_state=True)
    # As `accelerate launch --use_fsdp --fsdp_version 2` does.
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    accelerate(mask)
    PartialState().destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # all is checked; at exit torch's threads now and then abort the process
