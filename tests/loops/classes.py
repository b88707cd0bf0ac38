"""A classifier of four classes that small networks learn in a few steps."""

import copy

import torch


def classifier(seed=5, norm=False):
    torch.manual_seed(seed)
    between = [torch.nn.BatchNorm1d(32)] if norm else []
    return torch.nn.Sequential(
        torch.nn.Linear(8, 32), *between, torch.nn.Tanh(), torch.nn.Linear(32, 4)
    )


def batches_of(steps, ranks=None, size=16):
    """(inputs, labels) of each step; one process's rows of them."""
    generator = torch.Generator().manual_seed(2)
    rule = torch.randn(8, 4, generator=generator)
    found = []
    for _ in range(steps):
        inputs = torch.randn(size, 8, generator=generator)
        labels = (inputs @ rule).argmax(1)
        rows = slice(None) if ranks is None else ranks.rows(size)
        found.append((inputs[rows], labels[rows]))
    return found


def loss_on(model):
    """Over all of a few batches."""
    model = copy.deepcopy(model).eval()
    pairs = batches_of(4)
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(model(x), y) for x, y in pairs]
    return float(sum(losses)) / len(losses)
