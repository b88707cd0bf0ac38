"""The one-sentence specification: AdamW on p[M], not a bit of p[~M]; without a mask, AdamW."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle, bits

from pecker_fast.optim.adamw import MaskedAdamW

SHAPES = {
    "scalar": (),
    "empty": (0, 3),
    "one": (1,),
    "seven": (7,),
    "odd": (41, 25),  # 1,025
    "long": (4097,),
    "conv": (6, 5, 3, 3),
}
BASE = {"lr": 1e-2, "weight_decay": 0.1}
OPTIONS = {
    "plain": {},
    "no_exp_avg": {"betas": (0.0, 0.999)},
    "small_beta1": {"betas": (0.3, 0.95)},
    "amsgrad": {"amsgrad": True},
    "amsgrad_no_exp_avg": {"amsgrad": True, "betas": (0.0, 0.9)},
    "maximize": {"maximize": True},
    "eps": {"eps": 1e-3},
    # In float64, since torch computes lr / (1 - beta1^t) in the tensor's own precision.
    "tensor_lr": {"lr": torch.tensor(1e-2, dtype=torch.float64)},
}
DENSITIES = {"none": None, "one_entry": "one", "half": 0.5, "all": 1.0}


def make_params(device, dtype=torch.float32):
    """Every shape once, and the layouts that hold the same entries in another order."""
    params = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    params["channels_last"] = torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last)
    params["transposed"] = torch.randn(9, 11).t()
    params["strided"] = torch.randn(12, 10)[::2, 1::3]
    # Not .to(dtype=...): strides must survive.
    return {
        name: torch.nn.Parameter(
            torch.empty_strided(p.shape, p.stride(), dtype=dtype, device=device).copy_(p)
        )
        for name, p in params.items()
    }


def make_masks(params, density):
    if density is None:
        return None
    masks = {
        n: torch.rand(p.shape, device=p.device) < (0.5 if density == "one" else density)
        for n, p in params.items()
    }
    if density == "one":
        for mask in masks.values():
            mask.zero_()
        masks["odd"][3, 4] = True
        masks["channels_last"][5, 4, 2, 2] = True
    return masks


def set_grads(params, step, dtype=None, layout=None, skip=()):
    """Fresh gradients, with zeros and large values among them."""
    for name, param in params.items():
        if name in skip:
            param.grad = None
            continue
        grad = torch.randn(param.shape, device=param.device)
        grad[torch.rand_like(grad) < 0.2] = 0
        grad = grad * 10.0 ** (step - 1)
        if layout == "contiguous":
            grad = grad.contiguous()
        elif layout == "reversed" and grad.dim() > 1:
            grad = grad.permute(*reversed(range(grad.dim()))).contiguous()
            grad = grad.permute(*reversed(range(grad.dim())))
        else:
            grad = torch.empty_like(param, dtype=torch.float32).copy_(grad)
        param.grad_dtype = None  # torch >= 2.10: allow a gradient of another dtype
        param.grad = grad.to(dtype or param.dtype)


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_parity(backend, dtype, options, density):
    params = make_params(backend.device, dtype)
    if backend.emulated:
        del params["long"]  # five programs, where "odd" has two
    masks = make_masks(params, density)
    oracle = Oracle(params, masks, [{**BASE, **options}])
    optimizer = MaskedAdamW(params.items(), **{**BASE, **options}, mask=masks, backend=backend.name)
    for step in range(2 if backend.emulated else 3):
        set_grads(params, step)
        before = {name: bits(param.grad) for name, param in params.items()}
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
        oracle.check(params)
        assert all(torch.equal(bits(p.grad), before[n]) for n, p in params.items())
    assert optimizer.backend == backend.name


@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
@pytest.mark.parametrize("layout", ["contiguous", "reversed"])
def test_gradient_strides_differ(backend, layout, density):
    """Torch's fused CPU AdamW is silently wrong here."""
    params = make_params(backend.device)
    masks = make_masks(params, density)
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
    for step in range(4):
        # The layout changes between steps, too.
        set_grads(params, step, layout=layout if step != 2 else None)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
        oracle.check(params)


@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
def test_memory_format_changes_after_construction(backend, density):
    params = make_params(backend.device)
    masks = make_masks(params, density)
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
    for step in range(4):
        if step == 2:
            params["conv"].data = params["conv"].data.to(memory_format=torch.channels_last)
            params["channels_last"].data = params["channels_last"].data.contiguous()
        set_grads(params, step)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
        oracle.check(params)


@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
def test_views_write_only_their_own_entries(backend, density):
    """Empty, 0-dim and strided parameters never disturb their neighbours in memory."""
    base = torch.randn(10, 12, device=backend.device)
    view = torch.nn.Parameter(base[1:9:2, 2:11:3])
    params = {
        "view": view,
        "empty": torch.nn.Parameter(base[3:3]),
        "dot": torch.nn.Parameter(base[9, 11]),
    }
    outside = torch.ones_like(base, dtype=torch.bool)
    outside[1:9:2, 2:11:3] = False
    outside[9, 11] = False
    before = base.clone()
    masks = make_masks(params, density)
    if masks:
        masks["dot"].fill_(True)
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
    for step in range(3):
        set_grads(params, step)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
    oracle.check(params)
    assert torch.equal(bits(base)[outside], bits(before)[outside])
    assert not torch.equal(base[9, 11], before[9, 11])


@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
def test_groups_and_late_gradients(backend, density):
    """Each parameter counts its own steps; each group has its own options."""
    params = make_params(backend.device)
    masks = make_masks(params, density)
    groups = {name: i % 3 for i, name in enumerate(params)}
    options = [
        {**BASE, "betas": (0.0, 0.99)},
        {**BASE, "lr": 3e-3, "weight_decay": 0.3},
        {**BASE, "amsgrad": True, "maximize": True},
    ]
    oracle = Oracle(params, masks, options, groups)
    optimizer = MaskedAdamW(
        [
            {"params": [(n, p) for n, p in params.items() if groups[n] == g], **o}
            for g, o in enumerate(options)
        ],
        mask=masks,
        backend=backend.name,
    )
    for step in range(5):
        skip = {"odd", "conv", "channels_last"} if step < 2 else {"seven"} if step == 3 else ()
        set_grads(params, step, skip=skip)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
        oracle.check(params)
    assert optimizer.state[params["odd"]]["step"] == 3
    assert optimizer.state[params["seven"]]["step"] == 4
    assert optimizer.state[params["long"]]["step"] == 5


def test_no_gradient_at_all_changes_nothing(backend):
    params = make_params(backend.device)
    before = {n: bits(p).clone() for n, p in params.items()}
    optimizer = MaskedAdamW(params.items(), **BASE, backend=backend.name)
    optimizer.step()
    assert all(torch.equal(bits(p), before[n]) for n, p in params.items())
    assert all(state["step"] == 0 for state in optimizer.state.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_frozen_gradient_entries_do_not_spread(backend, value):
    """With `grad *= mask`, one NaN outside the mask became a NaN weight."""
    params = make_params(backend.device)
    masks = make_masks(params, 0.5)
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
    for step in range(3):
        set_grads(params, step)
        for name, param in params.items():
            param.grad[~masks[name]] = value
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
    oracle.check(params)
    assert all(param.isfinite().all() for param in params.values())


def test_nan_in_a_salient_entry_stays_there(backend):
    params = make_params(backend.device)
    masks = make_masks(params, 0.5)
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
    first = masks["odd"].nonzero()[0]
    for step in range(3):
        set_grads(params, step)
        params["odd"].grad[tuple(first)] = float("nan") if step == 1 else 1.0
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
    oracle.check(params)
    assert params["odd"].isnan().sum() == 1
    assert all(param.isfinite().all() for name, param in params.items() if name != "odd")


def test_frozen_after_many_steps_with_decay_and_momentum(backend):
    """20 steps of `grad *= mask` + AdamW moved 900 of 900 frozen entries of 1,000."""
    param = torch.nn.Parameter(torch.randn(1000, device=backend.device))
    mask = torch.zeros(1000, dtype=torch.bool, device=backend.device)
    mask[::10] = True
    before = param.detach().clone()
    optimizer = MaskedAdamW([param], lr=1e-2, mask={param: mask}, backend=backend.name)
    for _ in range(20):
        param.grad = torch.randn_like(param)
        optimizer.step()
    assert torch.equal(bits(param)[~mask], bits(before)[~mask])
    assert (param[mask] != before[mask]).all()


@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
def test_gradient_dtype_differs(backend, density, dtype, grad_dtype):
    params = make_params(backend.device, dtype)
    if not hasattr(torch.nn.Parameter(torch.zeros(1)), "grad_dtype"):
        pytest.skip("this torch ties the gradient's dtype to the parameter's")
    masks = make_masks(params, density)
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
    for step in range(3):
        set_grads(params, step, dtype=grad_dtype)
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
    oracle.check(params)


@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
def test_clip_value(backend, density):
    params = make_params(backend.device)
    masks = make_masks(params, density)
    oracle = Oracle(params, masks, [{**BASE, "maximize": True}], clip_value=0.5)
    optimizer = MaskedAdamW(
        params.items(), **BASE, maximize=True, mask=masks, clip_value=0.5, backend=backend.name
    )
    for step in range(3):
        set_grads(params, step)
        params["long"].grad[5] = float("nan")
        before = {name: bits(param.grad) for name, param in params.items()}
        oracle.step({name: param.grad for name, param in params.items()})
        optimizer.step()
        assert all(torch.equal(bits(p.grad), before[n]) for n, p in params.items())
    oracle.check(params)


def test_clip_value_by_group(backend):
    a, b = (torch.nn.Parameter(torch.ones(3, device=backend.device)) for _ in range(2))
    optimizer = MaskedAdamW(
        [{"params": [a], "clip_value": 0.1}, {"params": [b]}],
        betas=(0.0, 0.5),
        eps=1.0,
        backend=backend.name,
    )
    a.grad, b.grad = torch.full_like(a, 9.0), torch.full_like(b, 9.0)
    optimizer.step()
    second = {p: optimizer.state[p]["exp_avg_sq"] for p in (a, b)}
    torch.testing.assert_close(second[a], torch.full_like(a, 0.5 * 0.01))
    torch.testing.assert_close(second[b], torch.full_like(b, 0.5 * 81))


def test_zero_learning_rate_changes_no_bit(backend):
    """Checkpointing libraries take a step with lr 0 and zero gradients."""
    for dtype in (torch.float32, torch.bfloat16):
        params = make_params(backend.device, dtype)
        masks = make_masks(params, 0.5)
        before = {name: bits(param).clone() for name, param in params.items()}
        optimizer = MaskedAdamW(
            params.items(), lr=0.0, weight_decay=0.1, mask=masks, backend=backend.name
        )
        for param in params.values():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        assert all(torch.equal(bits(p), before[n]) for n, p in params.items())


def test_two_runs_are_bit_equal(backend):
    def run():
        torch.manual_seed(3)
        params = make_params(backend.device)
        masks = make_masks(params, 0.5)
        optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=backend.name)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        return params

    first, second = run(), run()
    assert all(torch.equal(bits(first[n]), bits(second[n])) for n in first)
