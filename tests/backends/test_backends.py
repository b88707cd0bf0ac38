"""Backends: choice, agreement with the reference, and bits that depend on nothing."""

from __future__ import annotations

import json
import re
import sys
import types

import pytest
import torch
from oracle import TOLERANCES, bits
from test_optim_parity import DENSITIES, make_masks, make_params, set_grads

from pecker_fast import backends
from pecker_fast.backends import layout, reference, work
from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

needs_cpu = pytest.mark.skipif(
    backends.available()["cpu"] is not None, reason=str(backends.available()["cpu"])
)
BASE = {"lr": 1e-2, "weight_decay": 0.1}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# ---- choice


def test_reference_is_always_there():
    assert backends.available()["reference"] is None
    assert backends.select("reference", "cpu") is reference


def test_auto_prefers_the_compiled_one():
    expected = "cpu" if backends.available()["cpu"] is None else "reference"
    assert backends.name_of(backends.select("auto", "cpu")) == expected


def test_environment_overrides_auto_only(monkeypatch):
    monkeypatch.setenv("PECKER_FAST_BACKEND", "reference")
    assert backends.select("auto", "cpu") is reference
    monkeypatch.setenv("PECKER_FAST_BACKEND", "nonsense")
    assert backends.select("reference", "cpu") is reference
    with pytest.raises(PeckerError, match=r"'nonsense' does not exist: expected 'auto' or one of"):
        backends.select("auto", "cpu")


def test_wrong_device_is_refused():
    with pytest.raises(PeckerError, match="cannot work on tensors on meta"):
        backends.select("cpu", "meta")


@pytest.mark.parametrize(
    ("name", "module", "device", "needs"),
    [("cpu", "_C", "cpu", r"a C\+\+ compiler"), ("cuda", "_cuda", "cuda", "nvcc")],
)
def test_missing_module_gives_the_reason_of_the_build(
    monkeypatch, tmp_path, name, module, device, needs
):
    """Half-built installations that fail later, silently or strangely."""
    monkeypatch.delenv("PECKER_FAST_CUDA_ON_HOST", raising=False)
    monkeypatch.setitem(sys.modules, f"pecker_fast.{module}", None)
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends" / "__init__.py"))
    monkeypatch.setattr(backends, "_why_not_built", backends._why_not_built.__wrapped__)  # no cache
    assert re.search(f"reinstall with {needs}", backends.available()[name])
    (tmp_path / "_build_report.json").write_text(json.dumps({name: "not built: no compiler"}))
    assert backends.available()[name] == "not built: no compiler"
    with pytest.raises(
        PeckerError, match=f"{name!r} is not available: not built: no compiler; use 'auto'"
    ):
        backends.select(name, device)
    if name == "cpu":
        assert backends.select("auto", "cpu") is reference


def test_triton_says_why_it_cannot_be_used(monkeypatch):
    monkeypatch.setattr(
        backends, "_why_triton_is_missing", backends._why_triton_is_missing.__wrapped__
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.6.0"))
    assert backends.available()["triton"].startswith("no CUDA device")
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.5.1"))
    assert backends.available()["triton"] == "triton 3.5.1 is too old: 3.6 or newer is needed"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install" in backends.available()["triton"]


@needs_cpu
def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("PECKER_FAST_ISA", "mmx")
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = MaskedAdamW([param], backend="cpu")
    param.grad = torch.ones(3)
    with pytest.raises(PeckerError, match=r"PECKER_FAST_ISA is 'mmx': expected one of .*scalar"):
        optimizer.step()


# ---- agreement


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
def test_backend_agrees_with_reference(backend, dtype, density):
    """Every dtype, mask and layout; state as well as parameters."""
    results = []
    for name in ("reference", backend.name):
        torch.manual_seed(8)
        params = make_params(backend.device, dtype)
        masks = make_masks(params, density)
        optimizer = MaskedAdamW(
            params.items(), **BASE, amsgrad=True, clip_value=3.0, mask=masks, backend=name
        )
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        results.append((params, optimizer))
    (params, optimizer), (params2, optimizer2) = results
    for name in params:
        rtol, atol = TOLERANCES[dtype]
        torch.testing.assert_close(params[name], params2[name], rtol=rtol, atol=atol)
        state, state2 = optimizer.state[params[name]], optimizer2.state[params2[name]]
        rtol, atol = TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]
        for key in state:
            torch.testing.assert_close(state[key], state2[key], rtol=rtol, atol=atol)


# ---- bits


def on_device(tensor, device):
    """A copy there, with the same strides."""
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return like.copy_(tensor.detach())


def run_steps(dtype, density, backend="cpu", device="cpu", **options):
    torch.manual_seed(4)
    host = make_params("cpu", dtype)
    host["large"] = torch.nn.Parameter(torch.randn(3, 30011).to(dtype))
    params = {name: torch.nn.Parameter(on_device(p, device)) for name, p in host.items()}

    def masks():
        found = make_masks(host, density)
        return found and {name: mask.to(device) for name, mask in found.items()}

    optimizer = MaskedAdamW(
        params.items(), **BASE, **options, mask=masks(), clip_value=2.0, backend=backend
    )
    for step in range(6):
        if step == 2 and density:
            optimizer.set_mask(masks(), "carry")
        set_grads(host, step)
        host["odd"].grad[0, :3] = torch.tensor([0.0, -0.0, float("inf")])
        for name, param in params.items():
            param.grad_dtype = None
            param.grad = on_device(host[name].grad, device)
        optimizer.step()
    state = [t for p in params.values() for _, t in sorted(optimizer.state[p].items())]
    return [bits(tensor).cpu() for tensor in [*params.values(), *state]]


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
@pytest.mark.parametrize("options", [{"amsgrad": True}, {"betas": (0.0, 0.9)}], ids=str)
def test_instruction_sets_give_the_same_bits(monkeypatch, dtype, density, options):
    from pecker_fast import _C

    results = {}
    for isa in _C.instruction_sets():
        monkeypatch.setenv("PECKER_FAST_ISA", isa)
        results[isa] = run_steps(dtype, density, **options)
    expected = results.pop("scalar")
    for tensors in results.values():
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def power_by_products(base, exponent):
    """As `power` in csrc/adamw_math.h, which has no pow that gives the same bits everywhere."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{"amsgrad": True}, {"betas": (0.0, 0.9)}], ids=str)
def test_device_kernels_give_the_bits_of_the_cpus(monkeypatch, backend, dtype, options):
    """On a device too, where there is one; the CPU's powers taken as devices do, by products."""
    if backend.name in ("reference", "cpu"):
        pytest.skip("not a device's kernels")
    monkeypatch.setattr(work, "power", power_by_products)
    for density in (None, 0.5):
        found = run_steps(dtype, density, backend.name, backend.device, **options)
        expected = run_steps(dtype, density, **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_cpu
@pytest.mark.parametrize("density", [None, 0.5], ids=["dense", "masked"])
def test_thread_counts_give_the_same_bits(density):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run_steps(torch.float32, density))
    torch.set_num_threads(1)
    for tensors in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tensors, results[0], strict=True))


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_conversions_agree_with_torch_on_every_value(dtype):
    """All 65,536 patterns up, and the neighbourhood of every midpoint between two down."""
    cpu = backends.select("cpu", "cpu")
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    low = patterns.view(dtype)
    up = torch.zeros(low.numel())
    cpu.gather_salient_([low], [None], [up])
    assert torch.equal(bits(up)[~low.isnan()], bits(low.float())[~low.isnan()])
    assert torch.equal(up.isnan(), low.isnan())

    finite = low[low.isfinite()].float().unique()
    middles = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    edges = torch.tensor([65519.0, 65520.0, 65536.0, 1e30, torch.inf, 2**-25, 2**-26, 3e-45])
    values = torch.cat([finite, middles, edges])
    step = torch.tensor([-2, -1, 0, 1, 2], dtype=torch.int32)
    values = (values.view(torch.int32)[:, None] + step).flatten().view(torch.float32)
    values = torch.cat([values, -values])
    down = torch.zeros(values.numel(), dtype=dtype)
    cpu.scatter_salient_([down], [None], [values])
    number = ~values.isnan()
    assert torch.equal(bits(down)[number], bits(values.to(dtype))[number])
    assert torch.equal(down.isnan(), values.isnan())


# ---- salient copies


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_gather_scatter_and_ema(backend, dtype, masked):
    module = backend.module
    params = [p.detach() for p in make_params(backend.device, dtype).values()]
    masks = [torch.rand_like(p, dtype=torch.float32) < 0.4 for p in params]
    if not masked:
        masks = [torch.ones_like(mask) for mask in masks]
    indices = [mask.flatten().nonzero().flatten().int() if masked else None for mask in masks]
    vector_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    salient = [p[mask].to(vector_dtype) for p, mask in zip(params, masks, strict=True)]

    out = [torch.full_like(values, 7.0) for values in salient]
    module.gather_salient_(params, indices, out)
    assert all(torch.equal(a, b) for a, b in zip(out, salient, strict=True))
    module.gather_salient_(params, indices, out, accumulate=True)
    assert all(torch.equal(a, 2 * b) for a, b in zip(out, salient, strict=True))

    averages = [torch.randn_like(values) for values in salient]
    for decay in (0.99, 0.3, 0.0, 1.0):
        expected = [
            (decay * a.double() + (1 - decay) * s.double()).to(vector_dtype)
            for a, s in zip(averages, salient, strict=True)
        ]
        module.ema_salient_(averages, params, indices, decay)
        torch.testing.assert_close(averages, expected, rtol=1e-6, atol=1e-7)

    before = [param.clone() for param in params]
    module.scatter_salient_(params, indices, averages)
    for param, old, mask, values in zip(params, before, masks, averages, strict=True):
        assert torch.equal(bits(param)[~mask], bits(old)[~mask])
        assert torch.equal(param[mask], values.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("own", [False, True], ids=["wide", "own dtype"])
def test_swap_exchanges_and_undoes_itself(backend, dtype, masked, own):
    params = [p.detach() for p in make_params(backend.device, dtype).values()]
    masks = [torch.rand_like(p, dtype=torch.float32) < (0.4 if masked else 2.0) for p in params]
    indices = [mask.flatten().nonzero().flatten().int() if masked else None for mask in masks]
    vector_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    vector_dtype = dtype if own else vector_dtype
    before = [param.clone() for param in params]
    old = [p[mask].to(vector_dtype) for p, mask in zip(params, masks, strict=True)]
    new = [torch.randn_like(values) for values in old]
    vectors = [values.clone() for values in new]
    backend.module.swap_salient_(params, indices, vectors)
    for param, mask, start, values in zip(params, masks, before, new, strict=True):
        assert torch.equal(param[mask], values.to(dtype))
        assert torch.equal(bits(param)[~mask], bits(start)[~mask])
    assert all(torch.equal(a, b) for a, b in zip(vectors, old, strict=True))
    backend.module.swap_salient_(params, indices, vectors)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(params, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_copied_as_they_are(backend, dtype):
    """All 65536 of them, every NaN included; what is not a copy is the reference's."""
    module, words = backend.module, torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    every, out = words.view(dtype).to(backend.device), torch.ones(2**16).to(backend.device, dtype)
    places = torch.arange(2**16, dtype=torch.int32, device=backend.device)
    module.gather_salient_([every], [places], [out])
    assert torch.equal(bits(out), bits(every))
    module.scatter_salient_([every], [None], [out.flip(0)])
    assert torch.equal(bits(every), bits(out.flip(0)))
    ones = torch.ones_like(out)
    module.gather_salient_([ones.clone()], [None], [ones], accumulate=True)
    module.ema_salient_([ones], [ones.clone() * 4], [None], 0.5)
    assert torch.equal(ones, torch.full_like(ones, 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norm_of_salient_gradients(backend, dtype):
    sizes = (1, 7, 1025, 4097, 0)
    vectors = [torch.randn(n, device=backend.device, dtype=dtype) for n in sizes]
    vectors[2][::3] *= 1e19  # squares overflow float32
    norm, found_inf = backend.module.norm_salient(vectors)
    expected = torch.linalg.vector_norm(torch.cat(vectors).double())
    torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0.0)
    assert found_inf.item() == 0.0
    again, _ = backend.module.norm_salient(vectors)
    assert torch.equal(norm, again)
    for bad in (float("inf"), float("-inf"), float("nan")):
        vectors[3][4000] = bad
        assert backend.module.norm_salient(vectors)[1].item() == 1.0


def test_salient_copies_mark_what_they_change(backend):
    param = torch.nn.Parameter(torch.ones(4, device=backend.device))
    vector = torch.zeros(4, device=backend.device)
    before = vector._version, param._version
    backend.module.gather_salient_([param], [None], [vector])
    backend.module.scatter_salient_([param], [None], [vector])
    assert vector._version > before[0]
    assert param._version > before[1]
    before = vector._version, param._version
    backend.module.swap_salient_([param], [None], [vector])
    assert vector._version > before[0]
    assert param._version > before[1]


@needs_cpu
def test_vector_of_another_length_is_refused():
    cpu = backends.select("cpu", "cpu")
    with pytest.raises(PeckerError, match=r"expected a vector of 4 salient values, got .*\(3,\)"):
        cpu.gather_salient_([torch.ones(4)], [None], [torch.ones(3)])


# ---- layouts


def test_storage_offsets():
    base = torch.arange(2 * 3 * 4 * 5)
    for tensor in (
        base.view(2, 3, 4, 5),
        base.view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        base.view(6, 20).t(),
        base.view(10, 12)[1::3, ::5],
        base[7],
        base[:0],
    ):
        indices = torch.arange(0, tensor.numel(), 2, dtype=torch.int32)
        offsets = layout.storage_offsets(indices, tensor)
        assert offsets.dtype == torch.int32
        flat = layout.flat_storage(tensor)
        assert torch.equal(flat[offsets.long()], tensor.flatten()[indices.long()])
        assert layout.storage_offsets(indices, tensor) is offsets  # remembered


@needs_cpu
def test_offsets_beyond_int32_go_through_the_reference():
    """The gap costs no memory: nothing in it is ever touched."""
    try:
        storage = torch.empty(2**31 + 16, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("this machine does not let a process reserve 4 GiB of addresses")
    wide = storage.as_strided((2, 3), (2**31 + 4, 2))
    wide.copy_(torch.arange(6.0).view(2, 3))
    param = torch.nn.Parameter(wide)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    optimizer = MaskedAdamW([("wide", param)], **BASE, mask={"wide": mask}, backend="cpu")
    twin = torch.nn.Parameter(wide.clone(memory_format=torch.contiguous_format))
    optimizer2 = MaskedAdamW([("wide", twin)], **BASE, mask={"wide": mask}, backend="cpu")
    for _ in range(3):
        twin.grad = torch.randn(2, 3).bfloat16()
        param.grad = twin.grad.clone()
        optimizer.step()
        optimizer2.step()
    torch.testing.assert_close(param.detach(), twin.detach())
    assert torch.equal(param[~mask], torch.arange(6.0).view(2, 3)[~mask].bfloat16())
