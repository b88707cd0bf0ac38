"""How a mask reaches the optimizer, and how one follows another."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle, bits
from test_optim_contract import BASE, make_model, random_masks, train

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.optim.adamw import MaskedAdamW


def assert_equal_params(first, second):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_three_kinds_of_mask_are_one(backend):
    masks = random_masks(make_model(backend.device))
    models = [make_model(backend.device) for _ in range(3)]
    given = [
        SaliencyMask.from_dense(masks),
        masks,
        {param: masks[name] for name, param in models[2].named_parameters()},
    ]
    optimizers = [
        MaskedAdamW(model.named_parameters(), **BASE, mask=mask, backend=backend.name)
        for model, mask in zip(models, given, strict=True)
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
        assert_equal_params(model, models[0])
        optimizer.load_state_dict(optimizers[0].state_dict())  # one digest, too


def test_parameter_keys_need_no_names(backend):
    model = make_model(backend.device)
    masks = {param: torch.rand_like(param) < 0.5 for param in model.parameters()}
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = MaskedAdamW(model.parameters(), **BASE, mask=masks, backend=backend.name)
    train(model, optimizer, 2)
    for (param, mask), old in zip(masks.items(), before, strict=True):
        assert torch.equal(bits(param)[~mask], bits(old)[~mask])
        assert (param != old)[mask].any()


def test_state_is_compact(backend):
    model = make_model(backend.device)
    masks = random_masks(model)
    masks["0.weight"].zero_()
    optimizer = MaskedAdamW(
        model.named_parameters(), amsgrad=True, mask=masks, backend=backend.name
    )
    for name, param in model.named_parameters():
        state = optimizer.state[param]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert (state["step"].shape, state["step"].dtype) == ((), torch.float32)
        assert state["step"].device.type == "cpu"
        nnz = int(masks[name].sum())
        assert all(state[k].shape == (nnz,) and not state[k].any() for k in state if k != "step")


def test_dense_state_has_the_parameters_layout(backend):
    param = torch.nn.Parameter(
        torch.randn(4, 3, 2, 2, device=backend.device).to(memory_format=torch.channels_last)
    )
    optimizer = MaskedAdamW([param], backend=backend.name)
    assert optimizer.state[param]["exp_avg"].shape == param.shape
    assert optimizer.state[param]["exp_avg"].stride() == param.stride()


def test_fully_frozen_parameter_stays(backend):
    model = make_model(backend.device)
    masks = random_masks(model)
    masks["2.weight"].zero_()
    before = model[2].weight.detach().clone()
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name)
    train(model, optimizer, 3)
    assert torch.equal(bits(model[2].weight), bits(before))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("2.bias"), "does not know parameter '2.bias'"),
        (lambda m: m.update(ghost=torch.ones(2, dtype=torch.bool)), "'ghost' salient"),
        (lambda m: m.update({"2.bias": torch.ones(4).bool()}), r"shape \(4,\).* has \(5,\)"),
        (lambda m: [mask.zero_() for mask in m.values()], "no salient entry"),
    ],
)
def test_masks_that_do_not_fit(change, message):
    """A mask applied to nothing."""
    model = make_model()
    masks = random_masks(model)
    change(masks)
    with pytest.raises(PeckerError, match=message):
        MaskedAdamW(model.named_parameters(), mask=masks)


def test_unknown_name_without_salient_entries_is_fine():
    model = make_model()
    masks = {**random_masks(model), "ghost": torch.zeros(3, dtype=torch.bool)}
    MaskedAdamW(model.named_parameters(), mask=masks)


def test_empty_mapping_is_refused():
    model = make_model()
    with pytest.raises(PeckerError, match=r"does not know parameter '0\.weight'"):
        MaskedAdamW(model.named_parameters(), mask={})


def test_named_mask_needs_names():
    model = make_model()
    with pytest.raises(PeckerError, match=r"pass model.named_parameters\(\)"):
        MaskedAdamW(model.parameters(), mask=random_masks(model))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (0.5, "must be a SaliencyMask or a mapping"),
        (
            {"0.weight": torch.ones(4, 3, 3, 3)},
            "'0.weight' must be a bool tensor, got torch.float32",
        ),
        ({"0.weight": [True]}, "'0.weight' must be a bool tensor, got list"),
        ({3: torch.ones(1, dtype=torch.bool)}, "must be names or parameters, got int"),
    ],
)
def test_things_that_are_no_mask(mask, message):
    with pytest.raises(TypeError, match=message):
        MaskedAdamW(make_model().named_parameters(), mask=mask)


def test_add_param_group_with_a_mask(backend):
    model = make_model(backend.device)
    masks = random_masks(model)
    first = {name: masks[name] for name in ("0.weight", "0.bias")}
    second = {name: masks[name] for name in ("2.weight", "2.bias")}
    named = list(model.named_parameters())
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = MaskedAdamW(named[:2], **BASE, mask=first, backend=backend.name)
    train(model, optimizer, 1)
    with pytest.raises(PeckerError, match=r"add_param_group\(group, mask=...\)"):
        optimizer.add_param_group({"params": named[2:]})
    with pytest.raises(PeckerError, match=r"does not know parameter '2\.weight'"):
        optimizer.add_param_group({"params": named[2:]}, mask=first)
    optimizer.add_param_group({"params": named[2:]}, mask=second)
    train(model, optimizer, 2)
    for (name, param), old in zip(named, before, strict=True):
        assert torch.equal(bits(param)[~masks[name]], bits(old)[~masks[name]])
        assert (param != old)[masks[name]].all()
    with pytest.raises(PeckerError, match="no mask, so a new group cannot have one"):
        MaskedAdamW(named[:2]).add_param_group({"params": named[2:]}, mask=second)


# ---- set_mask


def test_reset_starts_anew(backend):
    model = make_model(backend.device)
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, mask=random_masks(model), backend=backend.name
    )
    train(model, optimizer, 2)
    masks = random_masks(model)
    optimizer.set_mask(masks)
    params = dict(model.named_parameters())
    oracle = Oracle(params, masks, [BASE])
    for _ in range(3):
        for param in params.values():
            param.grad = torch.randn_like(param)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
    oracle.check(params)
    assert all(state["step"] == 3 for state in optimizer.state.values())


@pytest.mark.parametrize("start", ["dense", "masked"])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.9)], ids=["exp_avg", "no_exp_avg"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_carry(backend, start, betas, amsgrad):
    """Each entry goes through AdamW from the step at which it became salient, and only while it is.

    Entries that join late need a bias correction of their own.
    """
    param = torch.nn.Parameter(torch.randn(13, 40, device=backend.device))
    options = {**BASE, "betas": betas, "amsgrad": amsgrad}
    masks = [torch.rand_like(param) < 0.5 for _ in range(3)]
    if start == "dense":
        masks[0].fill_(True)
    grads = [torch.randn_like(param) for _ in range(9)]
    steps = 3  # with each mask

    # One float64 AdamW for the entries that are salient at the same steps, and for each of their
    # stays: an entry that leaves and returns starts anew.
    expected = param.detach().double().clone()
    salient = torch.stack(masks).repeat_interleave(steps, dim=0)  # (9, 13, 40)
    for pattern in salient.flatten(1).unique(dim=1).T:
        entries = (salient == pattern.view(-1, 1, 1)).all(dim=0)
        value = torch.nn.Parameter(expected[entries])
        for step in pattern.nonzero().flatten().tolist():
            if step == 0 or not pattern[step - 1]:
                optimizer = torch.optim.AdamW([value], **options, foreach=False)
            value.grad = grads[step][entries].double()
            optimizer.step()
        expected[entries] = value.detach()

    first = None if start == "dense" else {"p": masks[0]}
    ours = MaskedAdamW([("p", param)], **options, mask=first, backend=backend.name)
    for step, grad in enumerate(grads):
        if step in (steps, 2 * steps):
            before = param.detach().clone()
            ours.set_mask({"p": masks[step // steps]}, "carry")
            assert torch.equal(bits(param), bits(before))
        param.grad = grad
        ours.step()
    assert ours.state[param]["step"] == 9
    # Nothing can join at step 3 where everything was salient before.
    starts = [0, 6] if start == "dense" else [0, 3, 6]
    assert ours.state[param]["entry_start"].unique().tolist() == starts
    # float32 against float64.
    torch.testing.assert_close(param.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_carry_to_the_same_mask_changes_nothing(backend):
    models = [make_model(backend.device) for _ in range(2)]
    masks = random_masks(models[0])
    for i, model in enumerate(models):
        optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name)
        train(model, optimizer, 2)
        if i == 1:
            optimizer.set_mask(masks, "carry")
            assert not any(state["entry_start"].any() for state in optimizer.state.values())
        train(model, optimizer, 2)
    assert_equal_params(*models)


def test_masters_are_carried(backend):
    param = torch.nn.Parameter(torch.randn(50, device=backend.device, dtype=torch.bfloat16))
    old = torch.arange(50, device=backend.device) < 30
    new = torch.arange(50, device=backend.device) >= 10
    optimizer = MaskedAdamW([("p", param)], lr=1e-5, mask={"p": old}, backend=backend.name)
    for _ in range(3):
        param.grad = torch.randn_like(param)
        optimizer.step()
    master = optimizer.state[param]["master"].clone()
    optimizer.set_mask({"p": new}, "carry")
    carried = optimizer.state[param]["master"]
    assert torch.equal(carried[:20], master[10:])
    assert torch.equal(carried[20:], param.detach()[30:].float())


def test_set_mask_that_is_refused_changes_nothing(backend):
    model = make_model(backend.device)
    masks = random_masks(model)
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name)
    train(model, optimizer, 2)
    before = repr(optimizer.state_dict())
    for arguments, message in (
        (({"0.weight": masks["0.weight"]},), "does not know parameter"),
        ((masks, "keep"), "must be 'reset' or 'carry'"),
        ((None, "carry"), "need a mask"),
    ):
        with pytest.raises(PeckerError, match=message):
            optimizer.set_mask(*arguments)
    assert repr(optimizer.state_dict()) == before
    train(model, optimizer, 1)


def test_mask_can_be_dropped(backend):
    model = make_model(backend.device)
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, mask=random_masks(model), backend=backend.name
    )
    train(model, optimizer, 1)
    optimizer.set_mask(None)
    params = dict(model.named_parameters())
    oracle = Oracle(params, None, [BASE])
    for param in params.values():
        param.grad = torch.randn_like(param)
    oracle.step({name: param.grad for name, param in params.items()})
    optimizer.step()
    oracle.check(params)
    assert optimizer.param_groups[0]["mask_digest"] is None
