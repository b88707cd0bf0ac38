"""SalUn's mask against its recipe written out: two argsorts on |sum of clipped gradients|."""

import copy

import pytest
import torch
from small import small_objective
from toys import weights

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.mask_finding import find_mask
from pecker_fast.runs.randomness import SALIENCY, IterationRandom


def salun_mask(objective, density):
    """{name: int64 0/1}, from the objective's draws alone."""
    network = copy.deepcopy(objective.original).requires_grad_(True).eval()
    random = IterationRandom(objective.config.seed, 0, torch.device("cpu"), SALIENCY)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    totals = {name: 0 for name, _ in network.named_parameters()}
    for part in objective.images.saliency_parts():
        batch = objective.images.to_score(part, random)
        a = abar[batch.t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * batch.images + (1 - a).sqrt() * batch.noise
        nothing = torch.full_like(batch.labels, 4)
        guided = 3 * network(x_t, batch.t, batch.labels) - 2 * network(x_t, batch.t, nothing)
        loss = (batch.noise - guided).square().sum(dim=(1, 2, 3)).mean(dim=0)
        network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for name, param in network.named_parameters():
            totals[name] = totals[name] + param.grad
    flat = -torch.cat([total.abs().flatten() for total in totals.values()])
    ranks = torch.argsort(torch.argsort(flat))
    parts = ranks.split([total.numel() for total in totals.values()])
    kept = round(len(flat) * density)
    return {
        name: (part < kept).long().reshape(total.shape)
        for (name, total), part in zip(totals.items(), parts, strict=True)
    }


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_the_mask_is_saluns(density):
    objective = small_objective({"mask.density": density}, dtype=torch.float64)
    network = copy.deepcopy(objective.original).requires_grad_(True)
    before = weights(network)
    ours = find_mask(objective, network)
    assert ours == SaliencyMask.from_dense(salun_mask(objective, density))
    after = weights(network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(param.grad is None for param in network.parameters())


def test_what_the_mask_depends_on():
    def found(overrides):
        objective = small_objective(overrides)
        return find_mask(objective, copy.deepcopy(objective.original).requires_grad_(True))

    usual = found({})
    assert usual == found({})
    for change in (
        {"forget": 1},
        {"seed": 1},
        {"saliency.guidance": 0.0},
        {"saliency.clip_grad_norm": None},
        {"saliency.reduction": "sum_of_abs"},
        {"mask.kind": "random"},
    ):
        assert found(change) != usual, change
    assert found({"mask.kind": "full"}).density == 1
