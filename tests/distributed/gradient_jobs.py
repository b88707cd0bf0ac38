"""What the processes of test_gradients.py do: importable by name."""

from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from pecker_fast import MaskedAdamW, SaliencyMask
from pecker_fast.distributed import GradientReducer


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


__all__ = ["exchange", "loss", "network", "sending_order"]
