"""Checkpoints: exact resumption, both ways with torch.optim.AdamW, refusal of what does not fit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from oracle import bits
from test_optim_contract import BASE, assert_same, make_model, random_masks, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW


def through_a_file(state_dict):
    """Save and load as users should."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def train_in(model, optimizer, steps):
    """Steps whose gradients depend on the step count alone, in the parameters' dtypes."""
    for _ in range(steps):
        count = int(next(iter(optimizer.state.values()))["step"])
        generator = torch.Generator().manual_seed(100 + count)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"betas": (0.0, 0.99)}], ids=str)
def test_resume_is_exact(backend, dtype, masked, options):
    """Torch casts all state but `step` to the parameter's dtype on load."""
    model = make_model(backend.device).to(dtype)
    masks = random_masks(model) if masked else None

    def make(network):
        return MaskedAdamW(
            network.named_parameters(), **BASE, **options, mask=masks, backend=backend.name
        )

    optimizer = make(model)
    train_in(model, optimizer, 2)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train_in(model, optimizer, 2)

    resumed = make_model(backend.device).to(dtype)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer = make(resumed)
    untouched = copy.deepcopy(saved)
    resumed_optimizer.load_state_dict(saved["optimizer"])
    train_in(resumed, resumed_optimizer, 2)

    assert_same(model, resumed)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        ours, theirs = optimizer.state[p], resumed_optimizer.state[q]
        assert ours.keys() == theirs.keys()
        assert ours["step"] == 4
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype
            assert torch.equal(bits(ours[key]), bits(theirs[key]))
    # Training on does not change the dict the checkpoint came from.
    for key, state in untouched["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, saved["optimizer"]["state"][key][name])


def test_resume_is_exact_after_carry(backend):
    model = make_model(backend.device).to(torch.bfloat16)
    first, second = random_masks(model), random_masks(model)
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=first, backend=backend.name)
    train_in(model, optimizer, 2)
    optimizer.set_mask(second, "carry")
    train_in(model, optimizer, 2)
    assert "entry_start" in optimizer.state[model[2].weight]
    saved = through_a_file(optimizer.state_dict())
    resumed = copy.deepcopy(model)
    resumed_optimizer = MaskedAdamW(
        resumed.named_parameters(), **BASE, mask=second, backend=backend.name
    )
    resumed_optimizer.load_state_dict(saved)
    assert resumed_optimizer.state[resumed[2].weight]["entry_start"].dtype == torch.int32
    train_in(model, optimizer, 3)
    train_in(resumed, resumed_optimizer, 3)
    assert_same(model, resumed)


@pytest.mark.parametrize("theirs_options", [{}, {"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"betas": (0.0, 0.99)}], ids=str)
def test_exchange_with_torch(backend, options, theirs_options):
    """Both directions, without a mask, and both go on as one."""

    def make(cls, network, **extra):
        return cls(network.parameters(), **BASE, **options, **extra)

    model = make_model(backend.device)
    theirs = make(torch.optim.AdamW, model, **theirs_options)
    train(model, theirs, 3)
    taken = copy.deepcopy(model)
    ours = make(MaskedAdamW, taken, backend=backend.name)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    train(model, theirs, 2)
    train(taken, ours, 2)
    assert_same(model, taken, exact=False)

    back = copy.deepcopy(taken)
    theirs = make(torch.optim.AdamW, back)
    theirs.load_state_dict(through_a_file(ours.state_dict()))
    train(taken, ours, 3)
    train(back, theirs, 3)
    assert_same(taken, back, exact=False)
    assert all(group["decoupled_weight_decay"] for group in theirs.param_groups)


def test_torch_checkpoint_without_our_keys_keeps_ours(backend):
    model = make_model(backend.device)
    theirs = torch.optim.AdamW(model.parameters(), **BASE)
    train(model, theirs, 1)
    ours = MaskedAdamW(model.parameters(), clip_value=0.25, backend=backend.name)
    state_dict = theirs.state_dict()
    for key in ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"):
        del state_dict["param_groups"][0][key]  # as of an old torch
    state_dict["param_groups"][0].pop("decoupled_weight_decay", None)  # torch has it from 2.7 on
    for state in state_dict["state"].values():
        state["step"] = int(state["step"])  # as of a very old torch
    ours.load_state_dict(state_dict)
    group = ours.param_groups[0]
    assert (group["clip_value"], group["mask_digest"], group["lr"]) == (0.25, None, 1e-2)
    train(model, ours, 1)
    assert all(state["step"] == 2 for state in ours.state.values())


def test_checkpoint_of_a_never_stepped_torch_optimizer(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
    train(model, ours, 2)
    model.load_state_dict(other.state_dict())
    ours.load_state_dict(torch.optim.AdamW(other.parameters(), **BASE).state_dict())
    train(model, ours, 2)
    train(other, torch.optim.AdamW(other.parameters(), **BASE), 2)
    assert_same(model, other, exact=False)


def test_checkpoint_of_another_mask_is_refused(backend):
    model = make_model(backend.device)
    masks = random_masks(model)
    optimizers = {
        "none": MaskedAdamW(model.named_parameters(), **BASE, backend=backend.name),
        "first": MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name),
        "second": MaskedAdamW(
            model.named_parameters(), **BASE, mask=random_masks(model), backend=backend.name
        ),
    }
    for mine, optimizer in optimizers.items():
        before = copy.deepcopy(optimizer.state_dict())
        for other, source in optimizers.items():
            if other != mine:
                with pytest.raises(PeckerError, match="construct it with the mask"):
                    optimizer.load_state_dict(source.state_dict())
        assert repr(optimizer.state_dict()) == repr(before)
    with pytest.raises(PeckerError, match="trained with no mask, this optimizer has mask"):
        optimizers["first"].load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


def test_checkpoint_of_another_model_is_refused(backend):
    model = make_model(backend.device)
    ours = MaskedAdamW(model.named_parameters(), **BASE, backend=backend.name)
    train(model, ours, 1)
    state_dict = copy.deepcopy(ours.state_dict())
    state_dict["state"][2]["exp_avg"] = torch.zeros(5, 63)
    with pytest.raises(PeckerError, match=r"exp_avg of '2.weight' .* shape \(5, 63\)"):
        ours.load_state_dict(state_dict)
    state_dict = copy.deepcopy(ours.state_dict())
    del state_dict["state"][2]["exp_avg"]
    with pytest.raises(PeckerError, match=r"no exp_avg for '2\.weight'"):
        ours.load_state_dict(state_dict)
    state_dict = copy.deepcopy(ours.state_dict())
    state_dict["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="doesn't match the size"):
        ours.load_state_dict(state_dict)
    assert all(state["step"] == 1 for state in ours.state.values())


def test_load_hooks(backend):
    """A pre-hook may replace the dict; the post-hook sees the restored dtypes."""
    model = make_model(backend.device).to(torch.bfloat16)
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, mask=random_masks(model), backend=backend.name
    )
    train_in(model, optimizer, 2)
    saved = {"wrapped": optimizer.state_dict()}
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda o, d: d["wrapped"])
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.extend(state["exp_avg"].dtype for state in o.state.values())
    )
    optimizer.load_state_dict(saved)
    assert seen == [torch.float32] * 4


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_distributed_checkpoint(backend, masked, flatten):
    """torch.distributed.checkpoint's get/set, saved before and after the first step."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = make_model(backend.device)
    mask = random_masks(model) if masked else None

    def make(network):
        return MaskedAdamW(network.named_parameters(), **BASE, mask=mask, backend=backend.name)

    for steps in (0, 3):
        trained = copy.deepcopy(model)
        optimizer = make(trained)
        train(trained, optimizer, steps)
        before = copy.deepcopy(trained)
        saved = through_a_file(get_optimizer_state_dict(trained, optimizer, options=options))
        assert_same(trained, before)
        assert all(state["step"] == steps for state in optimizer.state.values())

        resumed = copy.deepcopy(trained)
        resumed_optimizer = make(resumed)
        set_optimizer_state_dict(resumed, resumed_optimizer, saved, options=options)
        train(trained, optimizer, 2)
        train(resumed, resumed_optimizer, 2)
        assert_same(trained, resumed)
        assert all(state["step"] == steps + 2 for state in resumed_optimizer.state.values())
