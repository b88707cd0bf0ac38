"""A loop that puts other parameters in the optimizer's groups, as Accelerate does to shard them."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import bits
from test_optim_contract import BASE, assert_same, backward, make_model, random_masks, train

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW


def replace(optimizer, model):
    """The model's parameters in place of those of its twin, item by item, by way of stand-ins."""
    new = iter(model.parameters())
    for group in optimizer.param_groups:
        for index, old in enumerate(group["params"]):
            group["params"][index] = torch.empty(1, dtype=old.dtype)
        group["params"] = [next(new) for _ in group["params"]]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("dense", 0), ("masked", 0), ("masked", 2), ("released", 0), ("released", 2)],
)
def test_mask_and_state_follow(kind, steps):
    model = make_model()
    masked = kind != "dense"
    mask = random_masks(model) if masked else None
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, mask=mask, release_grads=kind == "released"
    )
    train(model, optimizer, steps)
    if masked and steps:
        optimizer.set_mask(random_masks(model), "carry")
    expected, undisturbed = copy.deepcopy((model, optimizer))
    other = copy.deepcopy(model)
    replace(optimizer, other)
    train(other, optimizer, 3, seed=9)
    train(expected, undisturbed, 3, seed=9)
    assert_same(other, expected)
    assert not torch.equal(other[0].weight, model[0].weight)
    for name, value in undisturbed.delta().values.items():
        assert torch.equal(optimizer.delta().values[name], value)
    saved, plain = optimizer.state_dict(), undisturbed.state_dict()
    assert saved["state"].keys() == plain["state"].keys()
    for key, state in plain["state"].items():
        assert all(torch.equal(saved["state"][key][name], value) for name, value in state.items())
    backward(model)  # nothing of ours hangs on the old parameters
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize("first", ["state_dict", "load_state_dict", "set_mask", "delta"])
def test_whatever_is_called_first(first):
    model = make_model()
    mask = random_masks(model)
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=mask)
    expected, undisturbed = copy.deepcopy((model, optimizer))
    train(model, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(model)
    fresh = MaskedAdamW(make_model().named_parameters(), **BASE, mask=mask)
    replace(fresh, other)
    if first == "load_state_dict":
        fresh.load_state_dict(saved)
        train(expected, undisturbed, 2)
        train(expected, undisturbed, 2, seed=9)
    else:
        if first == "state_dict":
            assert set(fresh.state_dict()["state"]) == set(saved["state"])
        elif first == "delta":
            assert fresh.delta().values
        fresh.set_mask(mask)
        undisturbed = MaskedAdamW(expected.named_parameters(), **BASE, mask=mask)
        expected.load_state_dict(model.state_dict())
        train(expected, undisturbed, 2, seed=9)
    train(other, fresh, 2, seed=9)
    assert_same(other, expected)


def test_masters_follow_the_dtype():
    """Accelerate makes bfloat16 parameters float32 before it shards them."""
    model = make_model().bfloat16()
    mask = random_masks(model)
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=mask)
    other = copy.deepcopy(model).float()
    expected = copy.deepcopy(other)
    replace(optimizer, other)
    train(other, optimizer, 2)
    train(expected, MaskedAdamW(expected.named_parameters(), **BASE, mask=mask), 2)
    assert_same(other, expected)


def test_what_cannot_be_followed():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=random_masks(model))
    before = [bits(param).clone() for param in model.parameters()]
    flat = torch.nn.Parameter(model[0].weight.detach().flatten())
    backward(model)
    old = optimizer.param_groups[0]["params"][0]
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(PeckerError, match="flatten parameters"):
        optimizer.step()
    optimizer.param_groups[0]["params"] = list(model.parameters())
    optimizer.param_groups[0]["params"][0] = flat
    with pytest.raises(PeckerError, match=r"'0\.weight' .* was replaced by one of shape"):
        optimizer.step()
    optimizer.param_groups[0]["params"][0] = old
    optimizer.param_groups[0]["params"].append(flat)
    with pytest.raises(PeckerError, match="add_param_group"):
        optimizer.step()
    assert all(torch.equal(bits(p), b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.param_groups[0]["params"].pop()
    optimizer.step()
    assert not all(torch.equal(bits(p), b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_model_that_moves_before_the_first_step():
    """Its state stayed where the model was made; the reverse of it here, without a GPU."""
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=random_masks(model))
    expected, undisturbed = copy.deepcopy((model, optimizer))
    for state in optimizer.state.values():
        state.update({name: value.to("meta") for name, value in state.items() if name != "step"})
    train(model, optimizer, 2)
    train(expected, undisturbed, 2)
    assert_same(model, expected)


def test_without_a_mask_it_is_torch_s():
    """ZeRO flattens parameters, and stage 3 shows the optimizer one of its pieces at a time."""
    model = make_model()
    ours = MaskedAdamW(model.parameters(), **BASE)
    theirs = torch.optim.AdamW(model.parameters(), **BASE)
    pieces = [[torch.nn.Parameter(torch.arange(6.0)) for _ in range(2)] for _ in range(2)]
    for optimizer, own in zip((ours, theirs), pieces, strict=True):
        for step in range(6):
            piece = own[step % 2]
            piece.grad = torch.arange(6.0) + step
            optimizer.param_groups[0]["params"] = [piece]
            optimizer.step()
        optimizer.param_groups[0]["params"] = own
        assert set(optimizer.state_dict()["state"]) == {0, 1}
    for mine, other in zip(*pieces, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_a_resized_parameter_is_refused(masked):
    """The kernel works on addresses: it must not read or write beyond the smaller tensor."""
    param = torch.nn.Parameter(torch.ones(100))
    mask = {"p": torch.ones(100, dtype=torch.bool)} if masked else None
    optimizer = MaskedAdamW([("p", param)], mask=mask, backend="auto")
    param.grad = torch.ones(100)
    optimizer.step()
    param.grad = None
    param.data = torch.ones(50)
    param.grad = torch.ones(50)
    with pytest.raises((PeckerError, RuntimeError, IndexError)):
        optimizer.step()
