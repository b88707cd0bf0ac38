"""What the processes of test_fsdp.py do: importable by name. Its toys are test_dcp.py's, too."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.optim.delta import apply_delta

BATCH = 8
BASE = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.9, 0.99)}


class Network(nn.Module):
    """Rows that two and four processes share unevenly, and a weight with fewer rows than they are.

    Four processes hold 2, 2, 1 and 0 of the 5 rows of `hidden`, and one of them all of `out`.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.hidden = nn.Linear(8 * 4, 5)
        self.out = nn.Linear(5, 1)

    def forward(self, images):
        features = torch.tanh(self.norm(self.conv(images))).flatten(1)
        return self.out(torch.tanh(self.hidden(features)))


def make_network(dtype=torch.float32, seed=1):
    torch.manual_seed(seed)
    return Network().to(dtype)


def make_mask(seed=2, density=0.3):
    """Random, with a parameter that is frozen as a whole."""
    dense = SaliencyMask.random(Network(), density, seed).to_dense()
    dense["norm.bias"].zero_()
    dense["out.weight"][0, 0] = True  # of a parameter that most processes hold nothing of
    return SaliencyMask.from_dense(dense)


def shard(network, mesh_shape=None):
    """`fully_shard` on two levels, as one does with blocks."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")  # one process: `Ranks.join` needs none
    shape = mesh_shape or (dist.get_world_size(),)
    names = ("replicate", "shard")[-len(shape) :]
    mesh = init_device_mesh("cpu", tuple(shape), mesh_dim_names=names)
    fully_shard(network.hidden, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def whole(value):
    """A DTensor's whole; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def weights(network):
    """Name -> whole weights."""
    return {name: whole(p.detach()).clone() for name, p in network.named_parameters()}


def states(optimizer):
    """The whole state by position of the parameter."""
    saved = optimizer.state_dict()["state"]
    return {
        str(key): {name: whole(value).clone() for name, value in state.items()}
        for key, state in saved.items()
    }


def whole_gradients(network, step):
    """Name -> gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(50 + step)
    return {
        name: torch.randn(param.shape, generator=generator).to(param.dtype)
        for name, param in network.named_parameters()
    }


def give_gradients(network, step):
    """The same whole gradients for any number of processes."""
    grads = whole_gradients(network, step)
    for name, param in network.named_parameters():
        grad = grads[name]
        if isinstance(param, DTensor):
            grad = distribute_tensor(grad, param.device_mesh, param.placements)
        param.grad = grad


def train_on_gradients(network, optimizer, steps):
    for step in steps:
        give_gradients(network, step)
        optimizer.step()
        optimizer.zero_grad()


def train(network, optimizer, rows=slice(None), steps=3, max_norm=None, scaler=None):
    """Real backward passes, on some rows of each step's batch."""
    norms = []
    dtype = next(network.parameters()).dtype
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(BATCH, 2, 4, 4, generator=generator).to(dtype)
        loss = (network(images[rows]) - 1).square().mean()
        if scaler is None:
            loss.backward()
            if max_norm is not None:
                norms.append(float(optimizer.clip_grad_norm_(max_norm)))
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return norms


def message_of(work):
    """What PeckerError says; an empty string without one."""
    try:
        work()
    except PeckerError as error:
        return str(error)
    return ""


def deltas_after_steps(ranks, masked, sharded):
    """Values and digest of `delta` after two steps, on each process."""
    network = make_network(torch.bfloat16)
    if sharded:
        shard(network)
    mask = make_mask() if masked else None
    optimizer = MaskedAdamW(network.named_parameters(), **BASE, mask=mask)
    train_on_gradients(network, optimizer, range(2))
    delta = optimizer.delta()
    refused = message_of(lambda: apply_delta(network, delta, mask))
    return dict(delta.values), delta.mask, refused


def train_cases(ranks, cases, sharded, same_rows=True, mesh_shape=None):
    """One training per case; all processes on the same rows of a batch, or each on its part."""
    outcomes = []
    rows = slice(None) if same_rows else ranks.rows(BATCH)
    for case in cases:
        options = dict(case)
        dtype = getattr(torch, options.pop("dtype", "float32"))
        max_norm, masked = options.pop("max_norm", None), options.pop("masked", True)
        network = make_network(dtype)
        if sharded:
            network = shard(network, mesh_shape)
        optimizer = MaskedAdamW(
            network.named_parameters(),
            **{**BASE, **options},
            mask=make_mask() if masked else None,
        )
        norms = train(network, optimizer, rows, max_norm=max_norm)
        if masked:
            optimizer.set_mask(make_mask(seed=3), "carry")
            norms += train(network, optimizer, rows, steps=2, max_norm=max_norm)
        held = sum(
            value.numel()
            for state in optimizer.state.values()
            for key, value in state.items()
            if key == "exp_avg_sq"
        )
        outcomes.append(
            {
                "weights": weights(network),
                "state": states(optimizer),
                "norms": norms,
                "held": held,
                "grads": sum(param.grad is not None for param in network.parameters()),
            }
        )
    return outcomes


def switch(network, optimizer):
    """Shard after the optimizer was made, and put the new parameters in its groups."""
    named = dict(shard(network).named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [named[name] for name in group["param_names"]]


def train_switched(ranks, cases, switching):
    """Some steps, perhaps none, of a whole network, and three of the same one sharded."""
    outcomes = []
    for steps, options in cases:
        network = make_network()
        optimizer = MaskedAdamW(network.named_parameters(), **BASE, **options, mask=make_mask())
        train_on_gradients(network, optimizer, range(steps))
        if steps:
            optimizer.set_mask(make_mask(seed=3), "carry")
        if switching:
            switch(network, optimizer)
        before = states(optimizer)
        train_on_gradients(network, optimizer, range(steps, steps + 3))
        held = sum(state["exp_avg_sq"].numel() for state in optimizer.state.values())
        after = {"weights": weights(network), "before": before, "after": states(optimizer)}
        outcomes.append(after | {"held": held})
    return outcomes


def train_as_told(ranks, steps):
    """On given gradients, for the oracle."""
    network = shard(make_network())
    optimizer = MaskedAdamW(network.named_parameters(), **BASE, mask=make_mask())
    train_on_gradients(network, optimizer, range(steps))
    return weights(network)


def train_scaled(ranks, sharded, infinite_on):
    """With a GradScaler; one process meets an infinity in one step."""
    network = shard(make_network()) if sharded else make_network()
    optimizer = MaskedAdamW(network.named_parameters(), **BASE, mask=make_mask())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(network, optimizer, scaler=scaler)
    before = weights(network)
    outcome = {"scaled": before}
    give_gradients(network, 0)
    if ranks.rank == infinite_on:
        grad = network.conv.weight.grad
        (grad.to_local() if sharded else grad).view(-1)[0] = float("inf")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    outcome["skipped"] = weights(network)
    outcome["steps"] = [int(state["step"]) for state in optimizer.state.values()]
    outcome["scale"] = scaler.get_scale()
    return outcome


def refusals(ranks):
    """Everything about sharding that is not accepted, by name."""
    mesh = init_device_mesh("cpu", (ranks.size,))
    grid = init_device_mesh("cpu", (ranks.size, 1))
    heard = {}

    def make(value, mask=None):
        return MaskedAdamW([("weight", nn.Parameter(value))], mask=mask)

    columns = distribute_tensor(torch.ones(4, 4), mesh, [Shard(1)])
    heard["columns"] = message_of(lambda: make(columns))
    twice = distribute_tensor(torch.ones(4, 4), grid, [Shard(0), Shard(0)])
    heard["twice"] = message_of(lambda: make(twice))
    rows = 1 if ranks.rank == 0 else 3
    uneven = DTensor.from_local(
        torch.ones(rows, 4), mesh, [Shard(0)], run_check=False, shape=(4, 4), stride=(4, 1)
    )
    heard["uneven"] = message_of(lambda: make(uneven))

    network = shard(make_network())
    own = make_mask(seed=ranks.rank)
    heard["other masks"] = message_of(lambda: MaskedAdamW(network.named_parameters(), mask=own))
    later = make_network()
    switched = MaskedAdamW(later.named_parameters(), mask=own)
    switch(later, switched)
    heard["switched masks"] = message_of(switched.step)
    optimizer = MaskedAdamW(network.named_parameters(), mask=make_mask())
    heard["new masks"] = message_of(lambda: optimizer.set_mask(own))
    sharded = {name: distribute_tensor(m, mesh) for name, m in make_mask().to_dense().items()}
    try:
        optimizer.set_mask(sharded)
    except TypeError as error:
        heard["sharded mask"] = str(error)
    give_gradients(network, 0)
    weight = network.conv.weight
    weight.grad = distribute_tensor(torch.ones(weight.shape), weight.device_mesh, [Replicate()])
    heard["gradient"] = message_of(optimizer.step)
    return heard
