"""What a torch optimizer must survive, and what MaskedAdamW refuses."""

from __future__ import annotations

import inspect

import pytest
import torch
from oracle import bits

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

BASE = {"lr": 1e-2, "weight_decay": 0.1}


def make_model(device="cpu"):
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(64, 5)
    ).to(device)


def random_masks(model, density=0.5):
    return {name: torch.rand_like(param) < density for name, param in model.named_parameters()}


def backward(model, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    inputs = torch.randn(2, 3, 4, 4, generator=generator).to(device)
    loss = scale * model(inputs).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, steps, scheduler=None, seed=0):
    for step in range(steps):
        optimizer.zero_grad()
        loss = backward(model, seed + step)
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.detach() * 0 + step)  # never improves: the rate falls
        elif scheduler:
            scheduler.step()


def assert_same(first, second, exact=True):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        if exact:
            assert torch.equal(bits(a), bits(b))
        else:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# ---- signature and options


def test_signature_starts_like_torchs():
    ours = list(inspect.signature(MaskedAdamW).parameters.values())
    theirs = list(inspect.signature(torch.optim.AdamW).parameters.values())
    positional = [p for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    for mine, torchs in zip(ours, positional, strict=False):
        assert (mine.name, mine.kind, mine.default) == (torchs.name, torchs.kind, torchs.default)
    by_name = {p.name: p for p in ours}
    assert all(by_name[p.name].default == p.default for p in theirs)
    assert "grad_scaler" not in inspect.signature(MaskedAdamW.step).parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "learning rate: -1"),
        ({"lr": float("nan")}, "learning rate: nan"),
        ({"lr": torch.tensor([1e-3, 1e-3])}, "Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.9)}, "index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "index 1: -0.1"),
        ({"betas": (0.9, float("nan"))}, "index 1: nan"),
        ({"eps": -1e-8}, "epsilon value"),
        ({"eps": float("nan")}, "epsilon value"),
        ({"weight_decay": -0.1}, "weight_decay value: -0.1"),
        ({"clip_value": 0.0}, "clip_value: 0"),
        ({"foreach": True, "fused": True}, "cannot be `True` together"),
        ({"betas": (torch.tensor(0.9), 0.99)}, "either both floats or both Tensors"),
        ({"betas": (torch.ones(2) / 2,) * 2}, "betas.0. must be 1-element"),
        ({"differentiable": True}, "differentiable=True is not supported"),
        ({"release_grads": True}, "release_grads=True needs a mask"),
        ({"backend": "cudnn"}, "'cudnn' does not exist"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(PeckerError, match=message):
        MaskedAdamW([torch.nn.Parameter(torch.ones(2))], **options)


def test_bad_options_of_one_group():
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": -2.0}]
    with pytest.raises(PeckerError, match="learning rate: -2"):
        MaskedAdamW(groups)


def test_betas_may_be_tensors_that_change(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    betas = torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.75], dtype=torch.float64)
    ours = MaskedAdamW(model.parameters(), **BASE, betas=betas, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE, betas=(0.5, 0.75))
    train(model, ours, 2)
    train(other, theirs, 2)
    betas[0].fill_(0.25)
    theirs.param_groups[0]["betas"] = (0.25, 0.75)
    train(model, ours, 2)
    train(other, theirs, 2)
    assert ours.param_groups[0]["betas"] is betas
    assert_same(model, other, exact=False)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_bad_dtypes_are_named(dtype):
    param = torch.nn.Parameter(torch.ones(2).to(dtype))
    with pytest.raises(PeckerError, match=r"parameter 'spin' is (complex|torch.float8)"):
        MaskedAdamW([("spin", param)])


def test_sparse_gradients_are_named(backend):
    embedding = torch.nn.Embedding(5, 3, sparse=True, device=backend.device)
    optimizer = MaskedAdamW(embedding.named_parameters(), backend=backend.name)
    embedding(torch.tensor([1, 2], device=backend.device)).sum().backward()
    with pytest.raises(PeckerError, match="gradient of 'weight' is sparse"):
        optimizer.step()


def test_torchs_own_refusals_stay():
    with pytest.raises(ValueError, match="empty parameter list"):
        MaskedAdamW([])
    with pytest.raises(TypeError, match="should be an iterable"):
        MaskedAdamW(torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match="non-leaf"):
        MaskedAdamW([torch.ones(2, requires_grad=True) * 2])


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_torchs_implementation_switches_are_accepted(backend, options):
    model, other = make_model(backend.device), make_model(backend.device)
    train(model, MaskedAdamW(model.parameters(), **BASE, **options, backend=backend.name), 3)
    train(other, torch.optim.AdamW(other.parameters(), **BASE), 3)
    assert_same(model, other, exact=False)


# ---- the step


def test_version_counter_is_bumped(backend):
    model = make_model(backend.device)
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, mask=random_masks(model), backend=backend.name
    )
    backward(model)
    weight = model[2].weight
    out = (weight * weight).sum()  # saves weight for its backward
    before = [param._version for param in model.parameters()]
    optimizer.step()
    assert all(p._version > v for p, v in zip(model.parameters(), before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_closure(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE)
    for step in range(3):

        def closure(network, optimizer, step=step):
            optimizer.zero_grad()
            return backward(network, step)

        loss = ours.step(lambda: closure(model, ours))
        expected = theirs.step(lambda: closure(other, theirs))
        torch.testing.assert_close(loss, expected)
    assert ours.step(closure=None) is None
    theirs.step()
    assert_same(model, other, exact=False)


def test_hooks_see_the_optimizer():
    model = make_model()
    optimizer = MaskedAdamW(model.parameters(), **BASE)
    seen = []
    optimizer.register_step_pre_hook(lambda *args: seen.append(("pre", args[0])))
    optimizer.register_step_post_hook(lambda *args: seen.append(("post", args[0])))
    backward(model)
    optimizer.step()
    assert seen == [("pre", optimizer), ("post", optimizer)]


def test_zero_grad_keeps_or_drops():
    model = make_model()
    optimizer = MaskedAdamW(model.parameters(), **BASE)
    backward(model)
    optimizer.zero_grad(set_to_none=False)
    assert all(param.grad.eq(0).all() for param in model.parameters())
    optimizer.zero_grad()
    assert all(param.grad is None for param in model.parameters())


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=8),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=2),
}


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["float", "tensor"])
@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_schedulers(backend, make_scheduler, lr):
    models, optimizers = [], []
    for cls, options in ((MaskedAdamW, {"backend": backend.name}), (torch.optim.AdamW, {})):
        model = make_model(backend.device)
        own_lr = lr.clone() if isinstance(lr, torch.Tensor) else lr
        optimizer = cls(model.parameters(), lr=own_lr, weight_decay=0.1, **options)
        train(model, optimizer, 6, make_scheduler(optimizer))
        models.append(model)
        optimizers.append(optimizer)
    assert_same(*models, exact=False)
    ours, theirs = (o.param_groups[0] for o in optimizers)
    assert (float(ours["lr"]), ours["betas"]) == (float(theirs["lr"]), theirs["betas"])


def test_lr_switches_between_float_and_tensor(backend):
    """Trainers write either, at any time; the user's tensor is never replaced."""
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE)
    for lr in (1e-2, torch.tensor(5e-3), 2e-3, torch.tensor([1e-3])):
        ours.param_groups[0]["lr"] = lr
        theirs.param_groups[0]["lr"] = float(lr)  # torch's loop takes tensors from 2.7 on
        train(model, ours, 1)
        train(other, theirs, 1)
        assert ours.param_groups[0]["lr"] is lr
    assert_same(model, other, exact=False)


def test_beta1_rising_from_zero(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model.parameters(), **BASE, betas=(0.0, 0.99), backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE, betas=(0.9, 0.99))
    assert all("exp_avg" not in state for state in ours.state.values())
    ours.param_groups[0]["betas"] = (0.9, 0.99)  # before the first step: as if made so
    train(model, ours, 3)
    train(other, theirs, 3)
    assert_same(model, other, exact=False)

    late = MaskedAdamW(model.named_parameters(), **BASE, betas=(0.0, 0.99), backend=backend.name)
    train(model, late, 1)
    late.param_groups[0]["betas"] = (0.9, 0.99)
    with pytest.raises(PeckerError, match=r"beta1 rose from 0, but '0.weight' has taken 1 steps"):
        train(model, late, 1)


def test_amsgrad_switched_on_late(backend):
    model = make_model(backend.device)
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, backend=backend.name)
    train(model, optimizer, 2)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(PeckerError, match="amsgrad was switched on"):
        train(model, optimizer, 1)


def test_named_parameters(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    named = MaskedAdamW(model.named_parameters(), **BASE, backend=backend.name)
    train(model, named, 3)
    train(other, torch.optim.AdamW(other.named_parameters(), **BASE), 3)
    assert_same(model, other, exact=False)
    names = [name for name, _ in model.named_parameters()]
    assert named.param_groups[0]["param_names"] == names


def test_add_param_group(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model[0].parameters(), **BASE, backend=backend.name)
    theirs = torch.optim.AdamW(other[0].parameters(), **BASE)
    train(model, ours, 2)
    train(other, theirs, 2)
    for optimizer, network in ((ours, model), (theirs, other)):
        optimizer.add_param_group({"params": network[2].parameters(), "lr": 1e-3})
        train(network, optimizer, 2)
    assert_same(model, other, exact=False)


def test_add_param_group_that_is_refused_leaves_nothing():
    model = make_model()
    optimizer = MaskedAdamW(model[0].parameters(), **BASE)
    with pytest.raises(PeckerError, match="learning rate"):
        optimizer.add_param_group({"params": list(model[2].parameters()), "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": list(model[2].parameters())})


def test_parameters_that_need_no_gradient_have_no_state_until_they_do(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    for network in (model, other):
        network[0].requires_grad_(False)
    ours = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE)
    assert model[0].weight not in ours.state
    for network, optimizer in ((model, ours), (other, theirs)):
        train(network, optimizer, 2)
        network[0].requires_grad_(True)
        train(network, optimizer, 2)
    assert_same(model, other, exact=False)


def test_state_tensors_may_be_replaced(backend):
    """Loops that move or clone optimizer state assign new tensors into state[p]."""
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE)
    for network, optimizer in ((model, ours), (other, theirs)):
        train(network, optimizer, 2)
        for state in optimizer.state.values():
            for key, value in state.items():
                state[key] = value.clone()
        train(network, optimizer, 2)
        optimizer.state.clear()
        train(network, optimizer, 2)
    assert_same(model, other, exact=False)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_state_may_move_under_the_same_tensors(backend, masked):
    """Offloading swaps `.data`; a kernel that remembers addresses would write into freed memory."""
    models = [make_model(backend.device) for _ in range(2)]
    masks = random_masks(models[0]) if masked else None
    for swap, model in enumerate(models):
        optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name)
        train(model, optimizer, 2)
        for state in optimizer.state.values() if swap else ():
            for value in state.values():
                old = value.data
                value.data = old.clone()
                old.fill_(float("nan"))
        train(model, optimizer, 2)
    assert_same(*models)


def test_state_may_be_laid_out_or_cast_anew(backend):
    """Not what the kernel takes for granted: still right, whatever it costs."""
    models = [make_model(backend.device) for _ in range(2)]
    for change, model in enumerate(models):
        model.to(memory_format=torch.channels_last)
        optimizer = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
        train(model, optimizer, 2)
        if change:
            state = optimizer.state[model[0].weight]
            state["exp_avg"] = state["exp_avg"].contiguous()
            state = optimizer.state[model[2].weight]
            state["exp_avg"], state["exp_avg_sq"] = (
                state[key].double() for key in ("exp_avg", "exp_avg_sq")
            )
        train(model, optimizer, 2)
    assert_same(*models, exact=False)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float64], ids=str)
def test_model_may_be_cast_after_construction(backend, first, masked):
    models = [make_model(backend.device) for _ in range(2)]
    masks = random_masks(models[0]) if masked else None
    for model, dtype in zip(models, (first, torch.float32), strict=True):
        model.to(dtype)
        optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name)
        model.float()
        model.load_state_dict(make_model(backend.device).state_dict())
        train(model, optimizer, 3)
    assert_same(*models, exact=False)


def test_step_counts_can_be_set_in_place(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    ours = MaskedAdamW(model.parameters(), **BASE, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **BASE)
    for network, optimizer in ((model, ours), (other, theirs)):
        train(network, optimizer, 1)
        for state in optimizer.state.values():
            state["step"].fill_(7)
        train(network, optimizer, 1)
        assert all(state["step"] == 8 for state in optimizer.state.values())
    assert_same(model, other, exact=False)
