"""Low precision, GradScaler and released gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from oracle import Oracle, bits
from test_optim_contract import BASE, assert_same, backward, make_model, random_masks, train

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

LOW = [torch.bfloat16, torch.float16]


# ---- low-precision parameters


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"betas": (0.0, 0.99)}], ids=str)
def test_masters_equal_an_oracle_in_float32(backend, dtype, masked, options):
    model = make_model(backend.device).to(dtype)
    model[0].to(memory_format=torch.channels_last)
    params = dict(model.named_parameters())
    masks = random_masks(model) if masked else None
    oracle = Oracle(params, masks, [{**BASE, **options}])
    optimizer = MaskedAdamW(
        params.items(), **BASE, **options, mask=masks, master_weights=True, backend=backend.name
    )
    for _ in range(3):
        for param in params.values():
            param.grad = torch.randn_like(param)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
        oracle.check(params)
    for name, param in params.items():
        state = optimizer.state[param]
        expected = oracle.salient[name].detach()
        master = state["master"] if masked else state["master"].flatten()
        torch.testing.assert_close(master, expected, rtol=1e-6, atol=1e-7)
        assert state["step"] == 3
        assert all(state[key].dtype == torch.float32 for key in state)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_masters_keep_updates_that_rounding_would_lose(backend, dtype):
    """85 to 91 % of updates with lr 1e-6 vanish in low-precision weights."""
    start = torch.linspace(0.55, 1.0, 64, device=backend.device).to(dtype)
    moved = {}
    for master in (True, False):
        param = torch.nn.Parameter(start.clone())
        optimizer = MaskedAdamW(
            [param],
            lr=2e-4,  # below half the distance of float16 numbers: 2.4e-4; 12 of bfloat16: 2e-3
            weight_decay=0.0,
            mask={param: torch.ones_like(param, dtype=torch.bool)},
            master_weights=master,
            backend=backend.name,
        )
        assert ("master" in optimizer.state[param]) is master
        for _ in range(12):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved[master] = int((param != start).sum())
    assert moved[True] == 64
    assert moved[False] == 0


def test_masters_by_default_exactly_with_a_mask(backend):
    model = make_model(backend.device)
    model[2].to(torch.bfloat16)
    for mask, expected in ((None, False), (random_masks(model), True)):
        optimizer = MaskedAdamW(model.named_parameters(), mask=mask, backend=backend.name)
        assert ("master" in optimizer.state[model[2].weight]) is expected
        assert "master" not in optimizer.state[model[0].weight]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_parameter_changed_from_outside_restarts_its_master(backend, dtype):
    params = [
        torch.nn.Parameter(torch.randn(300, device=backend.device).to(dtype)) for _ in range(2)
    ]
    params[1].data.copy_(params[0].data)
    masks = {p: torch.ones_like(p, dtype=torch.bool) for p in params}
    optimizer = MaskedAdamW(params, lr=1e-3, mask=masks, backend=backend.name)
    grads = [torch.randn(300, device=backend.device).to(dtype) for _ in range(4)]
    for step, grad in enumerate(grads):
        if step == 2:
            with torch.no_grad():
                params[0][100:200] = 0.75  # for instance an EMA swapped in
            # What the restart means: a master that is the parameter's value.
            changed = optimizer.state[params[1]]["master"]
            changed[100:200] = 0.75
            params[1].data[100:200] = 0.75
        for param in params:
            param.grad = grad.clone()
        optimizer.step()
    assert torch.equal(bits(params[0]), bits(params[1]))
    master = [optimizer.state[p]["master"] for p in params]
    assert torch.equal(bits(master[0]), bits(master[1]))
    assert torch.equal(master[0].to(dtype), params[0].detach())


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_dense_low_precision_without_masters_rounds_once(backend, dtype):
    param = torch.nn.Parameter(torch.randn(2000, device=backend.device).to(dtype))
    exact = torch.nn.Parameter(param.detach().float())
    optimizer = MaskedAdamW([param], **BASE, backend=backend.name)
    oracle = torch.optim.AdamW([exact], **BASE, foreach=False)
    for _ in range(3):
        param.grad = torch.randn_like(param)
        exact.grad = param.grad.float()
        exact.data.copy_(param.data)  # as stored: each step rounds its result
        optimizer.step()
        oracle.step()
        ulp = 2**-7 if dtype == torch.bfloat16 else 2**-10
        torch.testing.assert_close(param.detach(), exact.detach().to(dtype), rtol=ulp, atol=1e-7)
        assert (param == exact.to(dtype)).float().mean() > 0.99


# ---- GradScaler


def scaled_step(model, optimizer, scaler, seed, unscale=False, spoil=None):
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    inputs = torch.randn(2, 3, 4, 4, generator=generator).to(device)
    scaler.scale(model(inputs).square().mean()).backward()
    if spoil is not None:
        spoil()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_grad_scaler(backend, masked, unscale):
    """Unscaled once, not twice, and written back to p.grad."""
    model, other = make_model(backend.device), make_model(backend.device)
    masks = random_masks(model) if masked else None
    ours = MaskedAdamW(
        model.named_parameters(), **BASE, clip_value=10.0, mask=masks, backend=backend.name
    )
    plain = MaskedAdamW(other.named_parameters(), **BASE, mask=masks, backend=backend.name)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=2.0**12)
    for seed in range(3):
        scaled_step(model, ours, scaler, seed, unscale)
        plain.zero_grad()
        backward(other, seed)
        plain.step()
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            where = masks[name] if masked else torch.ones_like(p, dtype=torch.bool)
            torch.testing.assert_close(p.grad[where], q.grad[where], rtol=1e-6, atol=1e-7)
    assert_same(model, other, exact=False)
    assert not hasattr(ours, "found_inf")


def test_fused_false_leaves_unscaling_to_the_scaler():
    model, other = make_model(), make_model()
    masks = random_masks(model)
    ours = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, fused=False)
    theirs = MaskedAdamW(other.named_parameters(), **BASE, mask=masks)
    for network, optimizer in ((model, ours), (other, theirs)):
        scaled_step(network, optimizer, torch.amp.GradScaler("cpu", init_scale=4.0), 0)
    assert_same(model, other)
    frozen = ~masks["2.weight"]  # a power of 2, so that scaling is exact
    assert torch.equal(4 * model[2].weight.grad[frozen], other[2].weight.grad[frozen])


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_grad_scaler_skips_on_infinity(backend, masked, unscale):
    """Also where the infinity is outside the mask; a skipped step is not counted."""
    model = make_model(backend.device)
    masks = random_masks(model) if masked else None
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=masks, backend=backend.name)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=2.0**4)
    scaled_step(model, optimizer, scaler, 0)
    before = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())

    def spoil():
        frozen = (~masks["2.weight"]).nonzero()[0] if masked else torch.tensor([1, 1])
        model[2].weight.grad[tuple(frozen)] = float("inf")

    scaled_step(model, optimizer, scaler, 1, unscale, spoil)
    assert_same(model, before)
    assert scaler.get_scale() == 2.0**3
    for key, tensors in optimizer.state_dict()["state"].items():
        for name, tensor in tensors.items():
            assert torch.equal(bits(tensor), bits(state["state"][key][name]))
    scaled_step(model, optimizer, scaler, 2)
    assert all(s["step"] == 2 for s in optimizer.state.values())


def test_infinity_found_elsewhere_without_a_scale(backend):
    """found_inf counts without grad_scale, as after unscale_ (pytorch PR#95847)."""
    param = torch.nn.Parameter(torch.ones(3, device=backend.device))
    optimizer = MaskedAdamW([param], backend=backend.name)
    param.grad = torch.ones_like(param)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(param.detach(), torch.ones_like(param))
    assert optimizer.state[param]["step"] == 0


# ---- released gradients


def test_released_gradients_equal_kept_ones(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    masks = random_masks(model)
    options = {**BASE, "mask": masks, "clip_value": 0.01, "backend": backend.name}
    ours = MaskedAdamW(model.named_parameters(), **options, release_grads=True)
    theirs = MaskedAdamW(other.named_parameters(), **options)
    for step in range(4):
        for network, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            for part in range(3):  # accumulation over several backward passes
                backward(network, 10 * step + part)
                if optimizer is ours:
                    assert all(param.grad is None for param in network.parameters())
            optimizer.step()
    assert_same(model, other)


def test_released_gradients_are_used_once(backend):
    model = make_model(backend.device)
    optimizer = MaskedAdamW(
        model.named_parameters(),
        **BASE,
        mask=random_masks(model),
        release_grads=True,
        backend=backend.name,
    )
    backward(model)
    optimizer.zero_grad()
    before = copy.deepcopy(model)
    optimizer.step()  # nothing to do: zero_grad cleared what was released
    assert_same(model, before)
    backward(model)
    optimizer.step()
    before = copy.deepcopy(model)
    optimizer.step()
    assert_same(model, before)
    assert all(state["step"] == 1 for state in optimizer.state.values())
    backward(model)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert all(state["step"] == 2 for state in optimizer.state.values())


def test_gradients_set_by_hand_are_released_too(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    masks = random_masks(model)
    options = {**BASE, "mask": masks, "backend": backend.name}
    ours = MaskedAdamW(model.named_parameters(), **options, release_grads=True)
    theirs = MaskedAdamW(other.named_parameters(), **options)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    ours.step()
    theirs.step()
    assert_same(model, other)
    assert all(param.grad is None for param in model.parameters())


def test_norm_clipping_of_released_gradients(backend):
    model, other = make_model(backend.device), make_model(backend.device)
    masks = random_masks(model)
    options = {**BASE, "mask": masks, "backend": backend.name}
    ours = MaskedAdamW(model.named_parameters(), **options, release_grads=True)
    theirs = MaskedAdamW(other.named_parameters(), **options)
    backward(model)
    backward(other)
    for name, param in other.named_parameters():
        param.grad[~masks[name]] = 0  # the norm is over the salient entries
    norm = ours.clip_grad_norm_(0.05)
    expected = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.05)
    torch.testing.assert_close(norm, expected)
    assert norm > 0.05
    ours.step()
    theirs.step()
    assert_same(model, other, exact=False)
    assert ours.clip_grad_norm_(0.05) == 0


def test_norm_clipping_needs_released_gradients():
    optimizer = MaskedAdamW(make_model().parameters())
    with pytest.raises(PeckerError, match=r"torch\.nn\.utils\.clip_grad_norm_"):
        optimizer.clip_grad_norm_(1.0)


def test_released_gradients_refuse_a_grad_scaler():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), mask=random_masks(model), release_grads=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(2, 3, 4, 4)).sum()).backward()
    with pytest.raises(RuntimeError, match="release_grads=True does not work with a GradScaler"):
        scaler.step(optimizer)


def test_set_mask_while_gradients_wait():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), mask=random_masks(model), release_grads=True)
    backward(model)
    with pytest.raises(PeckerError, match="released gradients of the old mask"):
        optimizer.set_mask(random_masks(model))
    optimizer.zero_grad()
    masks = random_masks(model)
    optimizer.set_mask(masks)
    before = copy.deepcopy(model)
    train(model, optimizer, 1)
    for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p[~masks[name]], q[~masks[name]])
        assert (p != q)[masks[name]].any()


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_release_their_own_gradients(backend, clone):
    """A copy made between two backward passes holds the first one's gradients, and hooks."""
    model = make_model(backend.device)
    optimizer = MaskedAdamW(
        model.named_parameters(),
        **BASE,
        mask=random_masks(model),
        release_grads=True,
        backend=backend.name,
    )
    train(model, optimizer, 1)
    backward(model, 5)
    model2, optimizer2 = clone((model, optimizer))
    for network, own in ((model, optimizer), (model2, optimizer2)):
        backward(network, 6)
        assert all(param.grad is None for param in network.parameters())
        own.step()
        train(network, own, 2, seed=7)
    assert_same(model, model2)
    optimizer2.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 1, seed=8)
    train(model2, optimizer2, 1, seed=8)
    assert_same(model, model2)


def test_released_gradients_with_channels_last(backend):
    models = [make_model(backend.device).to(memory_format=torch.channels_last) for _ in range(2)]
    masks = random_masks(models[0])
    for model, release in zip(models, (False, True), strict=True):
        optimizer = MaskedAdamW(
            model.named_parameters(),
            **BASE,
            mask=masks,
            release_grads=release,
            backend=backend.name,
        )
        train(model, optimizer, 3)
    assert_same(*models)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_strides_of_dimensions_of_size_1_do_not_matter(backend, masked):
    """Gradients of 1x1 convolutions in channels_last: contiguous, with strides of their own."""
    param = torch.nn.Parameter(torch.randn(8, 4, 1, 1, device=backend.device))
    masks = {"conv": torch.rand(8, 4, 1, 1, device=backend.device) < 0.5} if masked else None
    oracle = Oracle({"conv": param}, masks, [{"lr": 0.1, "weight_decay": 0.1}])
    optimizer = MaskedAdamW(
        [("conv", param)], lr=0.1, weight_decay=0.1, mask=masks, backend=backend.name
    )
    for _ in range(3):
        values = torch.randn(8, 4, device=backend.device)
        param.grad = values.as_strided((8, 4, 1, 1), (4, 1, 4, 4))
        assert param.grad.is_contiguous() and param.grad.stride() != param.stride()
        optimizer.step()
        oracle.step({"conv": param.grad})
    oracle.check({"conv": param})
    if backend.name != "reference":
        assert not optimizer._prepared.batches[0].work.detours
