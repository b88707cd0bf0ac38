"""What torch asks of its own optimizers: the configurations of its test suite, against AdamW.

`torch.testing._internal.common_optimizers` describes AdamW by an OptimizerInfo: constructor
arguments that must work and arguments that must be refused. Here MaskedAdamW takes all of them.
"""

from __future__ import annotations

import copy
import functools
import io
from unittest import mock

import pytest
import torch
from oracle import bits

from pecker_fast import backends
from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

pytest.importorskip("expecttest")  # which torch's test suite needs

# Its import takes five seconds, so it waits for a test that runs: until then there are numbers.
CONFIGURATIONS = range(40)
every_configuration = pytest.mark.parametrize("number", CONFIGURATIONS)


@functools.cache
def torchs():
    """AdamW's OptimizerInfo and all of its configurations, those for GPUs included."""
    # It would forbid the assignment of backend flags to every later test of this process.
    with mock.patch.object(torch.backends, "disable_global_flags"):
        from torch.testing._internal import common_optimizers

    (info,) = (i for i in common_optimizers.optim_db if i.optim_cls is torch.optim.AdamW)
    inputs = common_optimizers._get_optim_inputs_including_global_cliquey_kwargs(
        "cuda", torch.float32, info
    )
    return info, inputs


def options_of(number):
    """A configuration's arguments, fresh ones at each call."""
    _, inputs = torchs()
    if number >= len(inputs):
        pytest.skip("this torch has fewer configurations")
    return copy.deepcopy(inputs[number].kwargs)


def supported(number):
    options = options_of(number)
    if options["differentiable"]:
        pytest.skip("refused: see test_differentiable_is_refused")
    return options


def make(device="cpu"):
    generator = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    for param in model.parameters():
        param.data = torch.randn(param.shape, generator=generator)
    return model.to(device)


def train(model, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param)
        optimizer.step()


def plain(options):
    """The same arithmetic by torch's loop, which has no capturable on a CPU."""
    betas = tuple(float(beta) for beta in options.get("betas", (0.9, 0.999)))
    switches = {"foreach": False, "fused": False, "capturable": False}
    return {**options, "betas": betas, **switches, "lr": float(options.get("lr", 1e-3))}


def assert_bits(first, second):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_no_configuration_is_left_out():
    info, inputs = torchs()
    assert len(inputs) == len(CONFIGURATIONS)
    assert sum(i.kwargs["differentiable"] for i in inputs) == 10  # the only ones refused
    assert len(info.optim_error_inputs_func(device="cpu", dtype=torch.float32)) == 12


@every_configuration
def test_agrees_with_torch(backend, number):
    options = supported(number)
    model, other = make(backend.device), make(backend.device)
    ours = MaskedAdamW(model.parameters(), **options, backend=backend.name)
    theirs = torch.optim.AdamW(other.parameters(), **plain(options))
    train(model, ours, range(4))
    train(other, theirs, range(4))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        # float32 tensors for lr and betas are rounded; the rest agrees to an ulp or two.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(float(state["step"]) == 4 for state in ours.state.values())


@every_configuration
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_a_float64_trajectory_is_torchs(backend_name, number):
    """In long steps, where an error of the bias corrections would show, to 9 units in the last
    place of a tensor's largest entry: what 30 sums of three roundings each may differ by."""
    if backends.available()[backend_name] is not None:
        pytest.skip(backends.available()[backend_name])
    options = {**supported(number), "capturable": False, "lr": 0.5}
    options["betas"] = plain(options)["betas"]  # torch's loop rounds tensors otherwise
    model, other = make().double(), make().double()
    ours = MaskedAdamW(model.parameters(), **options, backend=backend_name)
    theirs = torch.optim.AdamW(other.parameters(), **plain(options))
    for seed in range(30):
        train(model, ours, [seed])
        train(other, theirs, [seed])
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            largest = float(b.detach().abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=9 * 2**-52 * largest)


@every_configuration
def test_differentiable_is_refused(number):
    options = options_of(number)
    if not options["differentiable"]:
        pytest.skip("supported: see test_agrees_with_torch")
    with pytest.raises(RuntimeError, match="differentiable=True is not supported") as refused:
        MaskedAdamW(make().parameters(), **options)
    assert isinstance(refused.value, PeckerError)


@every_configuration
def test_resumes_from_a_file(backend, number):
    """With what users keep in the state, of the whole and of a parameter."""
    model = make(backend.device)
    optimizer = MaskedAdamW(model.parameters(), **supported(number), backend=backend.name)
    train(model, optimizer, range(2))
    optimizer.state["epoch"] = 7
    optimizer.state["counts"] = {"seen": torch.tensor([2**24 + 1])}
    optimizer.state[model[0].weight]["age"] = torch.arange(3)
    train(model, optimizer, [2])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = make(backend.device)
    resumed.load_state_dict(saved["model"])
    second = MaskedAdamW(resumed.parameters(), backend=backend.name)
    second.load_state_dict(saved["optimizer"])
    assert second.state["epoch"] == 7
    assert second.state["counts"]["seen"].tolist() == [2**24 + 1]
    assert second.state[resumed[0].weight]["age"].tolist() == [0, 1, 2]
    for network, one in ((model, optimizer), (resumed, second)):
        train(network, one, [3, 4])
    assert_bits(model, resumed)
    assert second.state_dict()["state"]["epoch"] == 7


@every_configuration
def test_copies_go_on(number):
    model = make()
    optimizer = MaskedAdamW(model.parameters(), **supported(number))
    train(model, optimizer, range(2))
    twin, copied = copy.deepcopy((model, optimizer))
    public = [name for name in vars(optimizer) if not name.startswith("_")]
    assert public == [name for name in vars(copied) if not name.startswith("_")]
    train(model, optimizer, [2])
    train(twin, copied, [2])
    assert_bits(model, twin)


@every_configuration
def test_checkpoints_of_an_older_torch(number):
    """Without the flags that came later, and with steps that are no tensors."""
    info, _ = torchs()
    options = supported(number)
    model, other = make(), make()
    optimizer = MaskedAdamW(model.parameters(), **options)
    train(model, optimizer, range(2))
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in info.not_og_supported_flags:
            group.pop(flag, None)
    for state in old["state"].values():
        state["step"] = float(state["step"])
    other.load_state_dict(model.state_dict())
    loaded = MaskedAdamW(other.parameters(), **options)
    loaded.load_state_dict(old)
    train(model, optimizer, [2])
    train(other, loaded, [2])
    assert_bits(model, other)


@every_configuration
def test_without_gradients_nothing_happens(number):
    model, untouched = make(), make()
    optimizer = MaskedAdamW(model.parameters(), **supported(number))
    optimizer.step()
    assert_bits(model, untouched)
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())
    assert "lr" in repr(optimizer)


@every_configuration
def test_schedulers(number):
    info, _ = torchs()
    options = supported(number)
    for makers in info.scheduler_inputs:
        models = make(), make()
        ours = MaskedAdamW(models[0].parameters(), **copy.deepcopy(options))
        theirs = torch.optim.AdamW(models[1].parameters(), **plain(options))
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            schedulers = [maker(optimizer) for maker in makers]
            for seed in range(4):
                train(model, optimizer, [seed])
                for scheduler in schedulers:
                    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(*([1.0] if plateau else []))
        assert float(ours.param_groups[0]["lr"]) == pytest.approx(
            theirs.param_groups[0]["lr"], rel=1e-6
        )


@pytest.mark.parametrize("number", range(12))
def test_bad_input_is_refused_as_torch_does(number):
    info, _ = torchs()
    bad = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)[number]
    params, options = bad.optimizer_error_input.params, bad.optimizer_error_input.kwargs
    if params is None:
        params = list(make().parameters())
    expecting = pytest.warns if issubclass(bad.error_type, Warning) else pytest.raises
    with expecting(bad.error_type, match=bad.error_regex):
        MaskedAdamW(params, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreach": True, "fused": True}, "`fused` and `foreach` cannot be `True` together"),
        ({"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
    ],
)
def test_flags_that_exclude_each_other(options, message):
    """The configurations that torch refuses on a GPU."""
    for cls in (MaskedAdamW, torch.optim.AdamW):
        with pytest.raises(RuntimeError, match=message):
            cls([torch.nn.Parameter(torch.ones(2))], **options)


def test_fused_on_meta():
    model = make("meta")
    for cls in (torch.optim.AdamW, MaskedAdamW):
        optimizer = cls(model.parameters(), fused=True)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with pytest.raises(RuntimeError, match="requires all the params to be floating point"):
            optimizer.step()
        optimizer.zero_grad()
        optimizer.step()


def test_the_default_dtype_may_be_float64():
    torch.set_default_dtype(torch.float64)
    try:
        models = make(), make()
        train(models[0], MaskedAdamW(models[0].parameters()), range(3))
        train(models[1], torch.optim.AdamW(models[1].parameters()), range(3))
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_parameters_of_other_dtypes_without_gradients_are_ignored(dtype, masked):
    """Counters and quantized weights come along in `model.parameters()`."""
    weight = torch.nn.Parameter(torch.ones(3))
    codes = torch.nn.Parameter(torch.ones(4).to(dtype), requires_grad=False)
    mask = {"weight": torch.tensor([True, False, True])} if masked else None
    optimizer = MaskedAdamW([("weight", weight), ("codes", codes)], lr=0.1, mask=mask)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight != 1).tolist() == [True, not masked, True]
    assert codes.to(torch.float32).tolist() == [1, 1, 1, 1]
    assert codes not in optimizer.state
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
