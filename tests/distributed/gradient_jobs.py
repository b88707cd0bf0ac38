"""What the processes of test_gradients.py do: importable by name."""

from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from pecker_fast import MaskedAdamW, SaliencyMask
from pecker_fast.distributed import GradientReducer
from pecker_fast.errors import PeckerError


def network():
    """Two layers and one that no loss sees, the same weights everywhere."""
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(5, 3), "b": nn.Linear(3, 2), "unused": nn.Linear(2, 1)})


def loss(made, rank):
    """Another one in each process."""
    random = torch.Generator().manual_seed(10 + rank)
    x = torch.randn(4, 5, generator=random, dtype=torch.float64).to(made["a"].weight.dtype)
    return made["b"](made["a"](x).tanh()).square().sum()


def exchange(ranks, positions, releases, bucket_bytes):
    """Two steps; what is seen after the second.

    Args:
        ranks: the processes.
        positions: name -> list of salient positions; None: no mask.
        releases: whether dense gradients are freed in the backward pass.
        bucket_bytes: as for the reducer.
    """
    made = network()
    params = dict(made.named_parameters())
    mask = None
    if positions is not None:
        shapes = {name: param.shape for name, param in params.items()}
        indices = {n: torch.tensor(found, dtype=torch.int32) for n, found in positions.items()}
        mask = SaliencyMask(indices, shapes)
    # beta1 = 0.5 and a second step with the first one's gradient: exp_avg is 3/4 of it.
    optimizer = MaskedAdamW(
        params.items(), lr=0.0, betas=(0.5, 0.999), mask=mask, release_grads=releases
    )
    reducer = GradientReducer(params, mask, ranks, optimizer=optimizer, bucket_bytes=bucket_bytes)
    for _ in range(2):
        optimizer.zero_grad()
        reducer.before_last_backward()
        loss(made, ranks.rank).backward()
        reducer.finish()
        left = {name: param.grad for name, param in params.items()}
        optimizer.step()
    seen = {
        name: optimizer.state[param]["exp_avg"] / 0.75
        for name, param in params.items()
        if not name.startswith("unused")
    }
    optimizer.zero_grad()
    reducer.close()
    return {"seen": seen, "left": left, "bytes": reducer.bytes_per_step}


def uneven(ranks, masked, releases, case):
    """One step in which `b` takes part otherwise than `a`; its gradient and how far it moved.

    Args:
        ranks: the processes.
        masked: half of the entries may change, else all.
        releases: whether dense gradients are freed in the backward pass.
        case: `b` takes part in an "earlier backward pass" only, or on the "last process" only.
    """
    made = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("a", "b", "unused")})
    for param in made.parameters():
        nn.init.ones_(param)
    mask = SaliencyMask.random(made, 0.5, seed=1) if masked else None
    optimizer = MaskedAdamW(
        made.named_parameters(), lr=0.1, betas=(0.0, 0.999), mask=mask, release_grads=releases
    )
    reducer = GradientReducer(dict(made.named_parameters()), mask, ranks, optimizer=optimizer)
    x = torch.full((1, 3), ranks.rank + 1.0)
    if case == "earlier backward pass":
        made["b"](x).sum().backward()
        reducer.before_last_backward()
        made["a"](x).sum().backward()
    else:
        reducer.before_last_backward()
        last = ranks.rank == ranks.size - 1
        (made["a"](x).sum() + (made["b"](x).sum() if last else 0.0)).backward()
    reducer.finish()
    optimizer.step()
    states = [optimizer.state[param] for param in made["b"].parameters()]
    reducer.close()
    return {
        "squares": [state["exp_avg_sq"] for state in states],
        "weights": [param.detach() for param in made["b"].parameters()],
        "unused": [bool((param != 1).any()) for param in made["unused"].parameters()],
    }


def released_under_ddp(ranks, wrapped):
    """What a step says whose optimizer frees the gradients of a DDP module, or of a bare one."""
    made = nn.Linear(4, 4)
    module = nn.parallel.DistributedDataParallel(made) if wrapped else made
    mask = SaliencyMask.random(made, 0.5, seed=1)
    optimizer = MaskedAdamW(made.named_parameters(), mask=mask, release_grads=True)
    try:
        module(torch.ones(1, 4)).sum().backward()
    except PeckerError as error:
        return str(error)
    optimizer.step()
    return None


def sending_order(ranks, differs):
    """Numel of the buckets of three steps, one for each parameter, as they are sent; and the sums.

    Args:
        ranks: the processes.
        differs: the second process computes its layers in another order than the first.
    """
    torch.manual_seed(0)
    # Registered in another order than they are used; one that no loss sees.
    sizes = {"third": 7, "first": 2, "unused": 11, "second": 5}
    params = {name: nn.Parameter(torch.randn(size)) for name, size in sizes.items()}
    order = ["second", "first", "third"] if differs and ranks.rank else ["first", "second", "third"]
    reducer = GradientReducer(params, None, ranks, bucket_bytes=1)
    sent = []

    def recorded(tensor, *args, **options):
        if options.get("async_op"):  # else it is no gradient
            sent[-1].append(tensor.numel())
        return all_reduce(tensor, *args, **options)

    all_reduce = dist.all_reduce
    with mock.patch("torch.distributed.all_reduce", recorded):
        for _ in range(3):
            sent.append([])
            for param in params.values():
                param.grad = None
            reducer.before_last_backward()
            total = torch.zeros(())
            for name in order:
                total = total + params[name].square().sum()
            total.backward()
            reducer.finish()
    sums = {name: params[name].grad for name in order}
    return {"sent": sent, "sums": sums, "own": {name: 2 * params[name].detach() for name in order}}


__all__ = ["exchange", "loss", "network", "released_under_ddp", "sending_order", "uneven"]
