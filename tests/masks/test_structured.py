"""Masks by structure, masks for parameters without names, and published scores."""

from __future__ import annotations

import copy

import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.masks import criteria
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.optim.adamw import MaskedAdamW


class Tied(torch.nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(6, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)))


def nameless_groups(model):
    """As transformers' Trainer makes them: decayed and not, without names."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def trained(model, optimizer):
    before = copy.deepcopy(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(6)).square().mean().backward()
        optimizer.step()
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    return {name: (param != old).detach() for (name, param), old in pairs}


def test_rows_are_the_tokens_that_move():
    model = Tied()
    mask = SaliencyMask.rows(model, {"embed.weight": [4, 1]})
    assert mask.nnz == 8
    optimizer = MaskedAdamW(nameless_groups(model), lr=0.1, mask=mask.bound(model))
    moved = trained(model, optimizer)
    assert moved["embed.weight"].all(1).tolist() == [False, True, False, False, True, False]
    assert not moved["embed.weight"][[0, 2, 3, 5]].any()
    assert not moved["norm.weight"].any()


@pytest.mark.parametrize("as_bool", [False, True])
def test_rows_and_columns_agree_with_indexing(as_bool):
    shapes = {"conv": torch.zeros(4, 3, 2, 2), "bias": torch.zeros(4)}
    numbers = [0, 2]
    for dim, make in ((0, SaliencyMask.rows), (1, SaliencyMask.columns)):
        size = shapes["conv"].shape[dim]
        choice = torch.zeros(size, dtype=torch.bool)
        choice[numbers] = True
        mask = make(shapes, {"conv": choice if as_bool else torch.tensor(numbers)})
        expected = torch.zeros(4, 3, 2, 2, dtype=torch.bool)
        expected[(slice(None),) * dim + (numbers,)] = True
        assert torch.equal(mask.to_dense()["conv"], expected)
        assert mask.indices["bias"].numel() == 0


@pytest.mark.parametrize(
    ("dim", "chosen", "named"),
    [
        (0, {"wieght": [0]}, "wieght"),
        (0, {"weight": [6]}, "weight"),
        (0, {"weight": [-1]}, "weight"),
        (0, {"weight": [0.5]}, "weight"),
        (0, {"weight": torch.tensor([True])}, "weight"),
        (0, {"weight": []}, "empty"),
        (1, {"bias": [0]}, "bias"),
    ],
)
def test_choices_that_cannot_be(dim, chosen, named):
    make = SaliencyMask.columns if dim else SaliencyMask.rows
    with pytest.raises(PeckerError, match=named):
        make(torch.nn.Linear(3, 6), chosen)


def test_n_of_m_agrees_with_a_loop():
    scores = {"w": torch.randint(0, 3, (5, 8)).float(), "v": torch.randn(4, dtype=torch.float64)}
    mask = SaliencyMask.n_of_m(scores, 2, 4)
    for name, score in scores.items():
        expected = torch.zeros(score.numel(), dtype=torch.bool)
        for start in range(0, score.numel(), 4):
            some = score.reshape(-1)[start : start + 4].tolist()
            best = sorted(range(4), key=lambda i, some=some: (-some[i], i))[:2]
            expected[[start + i for i in best]] = True
        assert torch.equal(mask.to_dense()[name].reshape(-1), expected)
    assert mask.density == 0.5
    for n, m in ((0, 4), (5, 4), (1, 3)):
        with pytest.raises(PeckerError):
            SaliencyMask.n_of_m(scores, n, m)
    with pytest.raises(PeckerError, match="'w' contain NaN"):
        SaliencyMask.n_of_m({"w": torch.tensor([1.0, float("nan")])}, 1, 2)


def test_densities_by_pattern():
    generator = torch.Generator().manual_seed(0)
    names = ("attn.q", "attn.k", "mlp.w", "norm")
    scores = {name: torch.rand(10, 10, generator=generator) for name in names}
    mask = SaliencyMask.from_scores(scores, {"attn.*": 0.2, "norm": 0, "*": 0.05})
    assert list(mask) == list(scores)
    attention = SaliencyMask.from_scores({n: scores[n] for n in names[:2]}, 0.2)
    assert all(torch.equal(mask.indices[n], attention.indices[n]) for n in names[:2])
    assert (mask.indices["mlp.w"].numel(), mask.indices["norm"].numel()) == (5, 0)
    with pytest.raises(PeckerError, match=r"no pattern .* 'mlp.w'"):
        SaliencyMask.from_scores(scores, {"attn.*": 0.2})
    with pytest.raises(PeckerError, match=r"no parameter is left .* 'attn.q'"):
        SaliencyMask.from_scores(scores, {"attn.*": 0.2, "attn.q": 0.1, "*": 0.1})


@pytest.mark.parametrize("named", ["embed.weight", "head.weight"])
def test_a_bound_mask_does_what_a_named_one_does(named):
    """By whichever name of a tied parameter; a checkpoint of one is a checkpoint of the other."""
    torch.manual_seed(0)
    model = Tied()
    twin = copy.deepcopy(model)
    mask = SaliencyMask.random(model, 0.3, seed=1)
    other = {n if n != "embed.weight" else named: p for n, p in mask.indices.items()}
    shapes = {n if n != "embed.weight" else named: s for n, s in mask.shapes.items()}
    bound = SaliencyMask(other, shapes).bound(twin)
    ours = MaskedAdamW(model.named_parameters(), mask=mask)
    theirs = MaskedAdamW(twin.parameters(), mask=bound)
    moved, also = trained(model, ours), trained(twin, theirs)
    assert all(torch.equal(moved[name], also[name]) for name in moved)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    theirs.load_state_dict(ours.state_dict())


def test_what_cannot_be_bound():
    model = Tied()
    mask = SaliencyMask.full(model)
    with pytest.raises(PeckerError, match=r"'embed.weight'.*Linear has not"):
        mask.bound(torch.nn.Linear(3, 3))
    with pytest.raises(PeckerError, match=r"\(6, 4\).*\(7, 4\)"):
        other = Tied()
        other.embed = torch.nn.Embedding(7, 4)
        mask.bound(other)
    part = SaliencyMask({"norm.bias": mask.indices["norm.bias"]}, {"norm.bias": (4,)})
    with pytest.raises(PeckerError, match=r"has no 'embed.weight'"):
        part.bound(model)
    both = dict(mask.indices) | {"head.weight": torch.tensor([1], dtype=torch.int32)}
    with pytest.raises(PeckerError, match=r"'head.weight' is another name"):
        SaliencyMask(both, dict(mask.shapes) | {"head.weight": (6, 4)}).bound(model)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        mask.bound(dict(model.named_parameters()))


def test_published_scores():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    batches = [torch.randn(5, 3), torch.randn(2, 3)]
    losses = [lambda x=x: model(x).square().mean() for x in batches]
    grads = []
    for loss in losses:
        grads.append(torch.autograd.grad(loss(), list(model.parameters())))
    snip, fisher = criteria.snip(model, losses), criteria.fisher(model, losses)
    wanda = criteria.wanda(model, lambda: [model(x.view(1, -1, 3)) for x in batches])
    for i, (name, param) in enumerate(model.named_parameters()):
        torch.testing.assert_close(criteria.magnitude(model)[name], param.detach().abs())
        torch.testing.assert_close(snip[name], (param * (grads[0][i] + grads[1][i])).abs().detach())
        torch.testing.assert_close(fisher[name], grads[0][i] ** 2 + grads[1][i] ** 2)
    norms = torch.cat(batches).norm(dim=0)
    torch.testing.assert_close(wanda["0.weight"], model[0].weight.detach().abs() * norms)
    assert list(wanda) == ["0.weight", "2.weight"]
    assert not model[0]._forward_pre_hooks
    SaliencyMask.n_of_m({"2.weight": wanda["2.weight"]}, 2, 4)
