"""Raw launches of the step and of the salient copies against numpy, bit for bit."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from triton_launching import (
    DEVICE,
    SLOTS,
    address,
    assert_same,
    bits,
    blocks,
    misaligned,
    spoil,
    table,
)

from pecker_fast.kernels import adamw, advance, salient

# The interpreter computes with numpy, which warns of the infinities and NaNs these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
STEP_DTYPES = [
    (FP32, FP32), (FP64, FP64), (BF16, BF16), (FP16, FP16),
    (BF16, FP32), (FP16, FP32), (FP32, BF16), (FP32, FP16),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(adamw, "SLOTS_PER_BLOCK", SLOTS)
    monkeypatch.setattr(salient, "SLOTS_PER_BLOCK", SLOTS)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def arithmetic(dtype):
    return FP64 if dtype == FP64 else FP32


def on_device(values, dtype):
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).to(DEVICE)


def random_offsets(rng, nnz):
    """Sorted offsets of nnz salient elements, and how many elements there are."""
    numel = 3 * nnz + 5
    return np.sort(rng.permutation(numel)[:nnz]).astype(np.int32), numel


# ---- advance


def power(base, exponent):
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@pytest.mark.parametrize("found_inf", [None, 0.0, math.nan, 1.0], ids=str)
def test_advance(found_inf):
    groups = [  # lr, beta1, beta2, eps, weight_decay, clip_value, sign, amsgrad
        [1e-3, 0.9, 0.999, 1e-8, 0.1, math.inf, 1.0, 0.0],
        [3e-2, 0.0, 0.95, 1e-6, 0.0, 2.5, -1.0, 1.0],
    ]
    starts = [0.0, 3.0, 8.0]
    counts = [0.0, 8.0, 1.0, 123456.0, 16.0]
    entries, first, missing = [], 0, {2}
    for i in range(301):  # more than a program takes
        entries.append([i % 2, first, 1 + i % 3, int(i % 5 == 0)])
        first += 1 + i % 3
    steps = torch.tensor([counts[i % 5] + 16 for i in range(301)], dtype=FP32)
    row_starts = torch.tensor([starts[r] for _, _, n, _ in entries for r in range(n)])
    rows = torch.full((first, 12), 7.0, dtype=FP64, device=DEVICE)
    device_steps = steps.to(DEVICE, copy=True)
    grads = table([0 if i % 7 in missing else 1 for i in range(301)])
    flag = None if found_inf is None else torch.tensor(found_inf, device=DEVICE)
    advance.advance(
        table(entries), grads, torch.tensor(groups, dtype=FP64, device=DEVICE),
        row_starts.float().to(DEVICE), device_steps, rows, flag,
    )  # fmt: skip

    expected = torch.full((first, 12), 7.0, dtype=FP64)
    for i, (group, first_row, row_count, is_double) in enumerate(entries):
        if i % 7 in missing or found_inf == 1.0:
            continue
        steps[i] += 1
        lr, beta1, beta2, eps, weight_decay, clip_value, sign, amsgrad = groups[group]
        for r in range(row_count):
            t = int(steps[i].item() - starts[r])
            np.testing.assert_allclose(power(beta2, t), beta2**t, rtol=1e-10)
            numbers = [
                1 - lr * weight_decay, 1 - beta1, 1 - (1 - beta1), beta2, 1 - beta2, eps,
                lr / (1 - power(beta1, t)), math.sqrt(1 - power(beta2, t)), clip_value, sign,
                amsgrad, 0.0,
            ]  # fmt: skip
            if is_double:
                expected[first_row + r] = torch.tensor(numbers, dtype=FP64)
            else:
                single = expected[first_row + r].view(FP32)
                single[:12] = torch.tensor(numbers, dtype=FP64).float()
    assert torch.equal(device_steps.cpu(), steps)
    assert torch.equal(bits(rows), bits(expected))


# ---- the step


@dataclass
class Case:
    """One parameter of a launch. Tensors are on the device; numpy holds what they were."""

    param: torch.Tensor
    grad: torch.Tensor | None
    param_offsets: torch.Tensor | None
    grad_offsets: torch.Tensor | None
    state: dict  # exp_avg, exp_avg_sq, max_exp_avg_sq, master: tensor or None
    start_class: torch.Tensor | None
    first_row: int
    nnz: int


def make_case(rng, param_dtype, grad_dtype, nnz, layout, kind, extras, first_row):
    """`kind` picks which optional tensors there are, bit by bit."""
    dtype = arithmetic(param_dtype)
    offsets, numel = random_offsets(rng, nnz)
    if layout in ("dense", "misaligned"):
        offsets, numel = None, nnz
    param = on_device(spoil(rng.standard_normal(numel), rng), param_dtype)
    sparse_grad = layout == "offsets"
    grad = on_device(spoil(rng.standard_normal(numel if sparse_grad else nnz), rng), grad_dtype)
    state = {
        "exp_avg": on_device(spoil(rng.standard_normal(nnz), rng), dtype) if kind & 1 else None,
        "exp_avg_sq": on_device(rng.random(nnz), dtype),
        "max_exp_avg_sq": on_device(rng.random(nnz), dtype) if extras else None,
        "master": None,
    }
    places = slice(None) if offsets is None else torch.from_numpy(offsets).long().to(DEVICE)
    if extras and kind & 2 and param_dtype in (BF16, FP16):
        salient_values = param[places].float()
        master = salient_values * (1 + 1e-4 * on_device(rng.standard_normal(nnz), FP32))
        master[::3] = 0.25  # not what the parameter holds: changed from outside
        state["master"] = master
    if layout == "misaligned":
        param, grad = misaligned(param), misaligned(grad)
        state["exp_avg_sq"] = misaligned(state["exp_avg_sq"])
    device_offsets = None if offsets is None else torch.from_numpy(offsets).to(DEVICE)
    start_class = torch.from_numpy(rng.integers(0, 3, nnz).astype(np.int32)).to(DEVICE)
    return Case(
        param, grad, device_offsets, device_offsets if sparse_grad else None, state,
        start_class if extras and kind & 4 else None, first_row, nnz,
    )  # fmt: skip


def make_cases(rng, param_dtype, grad_dtype, extras):
    shapes = [
        (1, "dense"), (7, "offsets"), (1025, "compact"), (4097, "dense"), (4097, "offsets"),
        (0, "dense"), (2048, "misaligned"), (2049, "compact"), (1024, "offsets"), (7, "misaligned"),
    ]  # fmt: skip
    cases = [
        make_case(rng, param_dtype, grad_dtype, nnz, layout, kind, extras, 3 * kind)
        for kind, (nnz, layout) in enumerate(shapes)
    ]
    cases[2].grad = None
    return cases


def make_rows(rng, count, dtype):
    """Scalars as no optimizer would combine them, so that none can stand in for another."""
    numbers = rng.uniform(0.05, 0.95, (count, 12))
    numbers[:, 1] = np.where(np.arange(count) % 2, 0.7, 0.3)  # both forms of lerp
    numbers[:, 2] = 1 - numbers[:, 1]
    numbers[:, 8] = np.where(np.arange(count) % 3, np.inf, 0.5)  # clip_value
    numbers[:, 9] = np.where(np.arange(count) % 4, 1.0, -1.0)  # sign
    numbers[:, 10] = (np.arange(count) // 3) % 2  # amsgrad
    rows = torch.zeros((count, 12), dtype=FP64)
    rows.view(dtype)[:, :12] = torch.from_numpy(numbers).to(dtype)
    return rows.to(DEVICE), torch.from_numpy(numbers).to(dtype).numpy()


def expected_step(case, rows, param_dtype, grad_dtype, grad_scale, extras):
    """The step by the words of the contract. Returns param, grad and state after it."""
    dtype = arithmetic(param_dtype)
    param, grad = case.param.cpu().clone(), case.grad.cpu().clone()
    state = {k: None if v is None else v.cpu().numpy().copy() for k, v in case.state.items()}
    everything = torch.arange(case.nnz)
    at_p = everything if case.param_offsets is None else case.param_offsets.cpu().long()
    at_g = everything if case.grad_offsets is None else case.grad_offsets.cpu().long()
    row = rows[case.first_row]
    start_class = 0 if case.start_class is None else case.start_class.cpu().numpy()
    step_size, bias_correction2_sqrt = rows[case.first_row + start_class][..., 6:8].T

    g = grad[at_g].to(dtype).numpy()
    if grad_scale is not None:
        g = g / g.dtype.type(grad_scale)
        grad[at_g] = torch.from_numpy(g).to(grad_dtype)
    g = np.clip(g, -row[8], row[8]) * row[9]
    p = param[at_p].to(dtype).numpy()
    if state["master"] is not None:
        rounded = torch.from_numpy(state["master"]).to(param_dtype).float().numpy()
        p = np.where(rounded == p, state["master"], p)
    first = g
    if state["exp_avg"] is not None:
        m = state["exp_avg"]
        first = m + row[1] * (g - m) if row[1] < 0.5 else g - (g - m) * row[2]
        state["exp_avg"] = first
    second = state["exp_avg_sq"] * row[3] + row[4] * g * g
    state["exp_avg_sq"] = second
    if extras and row[10]:
        second = state["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], second)
    p = p * row[0] + -step_size * first / (np.sqrt(second) / bias_correction2_sqrt + row[5])
    if state["master"] is not None:
        state["master"] = p
    param[at_p] = torch.from_numpy(p).to(param_dtype)
    return param, grad, state


def launch_step(cases, param_dtype, grad_dtype, extras, rows, grad_scale, found_inf):
    tensors = [
        [address(c.param), address(c.param_offsets), address(c.grad_offsets)]
        + [address(c.state[k]) for k in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master")]
        + [address(c.start_class), c.first_row, c.nnz]
        for c in cases
    ]
    adamw.masked_adamw(
        param_dtype, grad_dtype, extras, table(tensors), table([address(c.grad) for c in cases]),
        rows, blocks([c.nnz for c in cases]), grad_scale, found_inf,
    )  # fmt: skip


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "extras"])
@pytest.mark.parametrize("scale", [None, 3.0], ids=["", "scaled"])
@pytest.mark.parametrize(("param_dtype", "grad_dtype"), STEP_DTYPES, ids=str)
def test_masked_adamw(rng, param_dtype, grad_dtype, scale, extras):
    cases = make_cases(rng, param_dtype, grad_dtype, extras)
    rows, numbers = make_rows(rng, 3 * len(cases) + 3, arithmetic(param_dtype))
    with np.errstate(all="ignore"):
        expected = [
            None
            if c.grad is None
            else expected_step(c, numbers, param_dtype, grad_dtype, scale, extras)
            for c in cases
        ]
    untouched = cases[2].param.clone(), cases[2].state["exp_avg_sq"].clone()
    grad_scale = None if scale is None else torch.tensor(scale, device=DEVICE)
    found_inf = None if scale is None else torch.tensor(0.0, device=DEVICE)
    launch_step(cases, param_dtype, grad_dtype, extras, rows, grad_scale, found_inf)
    for index, (case, result) in enumerate(zip(cases, expected, strict=True)):
        if result is None:
            continue
        param, grad, state = result
        assert_same(case.param, param, f"param of {index}")
        assert_same(case.grad, grad, f"grad of {index}")
        for name, values in state.items():
            if values is not None:
                assert_same(case.state[name], values, f"{name} of {index}")
    assert_same(cases[2].param, untouched[0])  # no gradient
    assert_same(cases[2].state["exp_avg_sq"], untouched[1])


def test_found_inf_touches_nothing(rng):
    cases = make_cases(rng, BF16, BF16, True)
    rows, _ = make_rows(rng, 3 * len(cases) + 3, FP32)
    tensors = [t for c in cases for t in (c.param, c.grad, *c.state.values()) if t is not None]
    before = [tensor.clone() for tensor in tensors]
    one = torch.tensor(1.0, device=DEVICE)
    launch_step(cases, BF16, BF16, True, rows, one * 2, one)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(bits(tensor), bits(old))


def test_no_blocks_is_no_launch():
    empty = torch.empty((0, 2), dtype=torch.int32, device=DEVICE)
    nothing = table([]).reshape(0, 10)
    adamw.masked_adamw(FP32, FP32, False, nothing, nothing[:, 0], nothing, empty, None, None)
    advance.advance(nothing[:, :4], nothing[:, 0], nothing, nothing, nothing, nothing, None)
    salient.salient("gather", FP32, FP32, nothing, empty, 0.0)
    salient.salient_one("gather", torch.ones(3), None, torch.ones(0), 0.0)
    salient.sum_squares(FP32, nothing, empty, nothing)


# ---- salient copies

COPY_DTYPES = [(d, c) for d in (FP32, FP64, BF16, FP16) for c in (FP32, FP64)]


def copy_cases(rng, dense_dtype, compact_dtype):
    for nnz, layout in [
        (1, "offsets"), (7, "dense"), (1025, "misaligned"), (2048, "dense"), (4097, "offsets"),
        (0, "dense"), (4097, "dense"), (1024, "offsets"),
    ]:  # fmt: skip
        offsets, numel = random_offsets(rng, nnz)
        if layout != "offsets":
            offsets, numel = None, nnz
        dense = on_device(spoil(rng.standard_normal(numel), rng), dense_dtype)
        compact = on_device(spoil(rng.standard_normal(nnz), rng), compact_dtype)
        if layout == "misaligned":
            dense, compact = misaligned(dense), misaligned(compact)
        yield dense, None if offsets is None else torch.from_numpy(offsets).to(DEVICE), compact


def expected_copy(operation, dense, offsets, compact, decay):
    dense, compact = dense.cpu().clone(), compact.cpu().clone()
    at = torch.arange(len(compact)) if offsets is None else offsets.cpu().long()
    read = dense[at].to(compact.dtype)
    if operation in ("scatter", "swap"):
        # To float16 and bfloat16 from float64 by way of float32, as everywhere in the package.
        low = dense.dtype in (BF16, FP16)
        dense[at] = (compact.float() if low else compact).to(dense.dtype)
    if operation in ("gather", "swap"):
        compact = read
    elif operation == "gather_add":
        compact = compact + read
    elif operation == "ema":
        weight = compact.numpy().dtype.type(1 - decay)
        rest = compact.numpy().dtype.type(1 - (1 - decay))
        start, end = compact.numpy(), read.numpy()
        with np.errstate(all="ignore"):
            mean = start + weight * (end - start) if weight < 0.5 else end - (end - start) * rest
        compact = torch.from_numpy(mean)
    return dense, compact


@pytest.mark.parametrize("one", [False, True], ids=["table", "one"])
@pytest.mark.parametrize(("dense_dtype", "compact_dtype"), COPY_DTYPES, ids=str)
def test_salient(rng, dense_dtype, compact_dtype, one):
    for operation, decay in [
        ("gather", 0.0), ("gather_add", 0.0), ("scatter", 0.0), ("swap", 0.0),
        ("ema", 0.9), ("ema", 0.3), ("ema", 0.0), ("ema", 1.0),
    ]:  # fmt: skip
        cases = list(copy_cases(rng, dense_dtype, compact_dtype))
        expected = [expected_copy(operation, *case, decay) for case in cases]
        if one:
            for dense, offsets, compact in cases:
                salient.salient_one(operation, dense, offsets, compact, decay)
        else:
            rows = [[address(d), address(o), address(c), len(c)] for d, o, c in cases]
            work = blocks([len(compact) for _, _, compact in cases])
            salient.salient(operation, dense_dtype, compact_dtype, table(rows), work, decay)
        for (dense, _, compact), (dense2, compact2) in zip(cases, expected, strict=True):
            assert_same(dense, dense2, operation)
            assert_same(compact, compact2, operation)


@pytest.mark.parametrize("dtype", [FP32, FP64, BF16, FP16], ids=str)
def test_sum_squares(rng, dtype):
    tensors = [on_device(rng.standard_normal(n) * 100, dtype) for n in (1, 0, 7, 1025, 4097)]
    rows = table([[address(t), len(t)] for t in tensors])
    work = blocks([len(t) for t in tensors])
    partials = torch.full((len(work),), math.nan, dtype=FP64, device=DEVICE)
    again = partials.clone()
    salient.sum_squares(dtype, rows, work, partials)
    salient.sum_squares(dtype, rows, work, again)
    assert torch.equal(bits(partials), bits(again))
    expected = [
        math.fsum(tensors[row][c * SLOTS : (c + 1) * SLOTS].double().square().tolist())
        for row, c in work.tolist()
    ]
    # Both sums are of at most 1,024 positive terms in float64.
    np.testing.assert_allclose(partials.cpu(), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_rounding(dtype):
    """Every finite value and the middles between neighbours, each with what lies just beside."""
    raw = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    finite = raw[raw.isfinite()]
    middles = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    edges = torch.tensor([65519.0, 65520.0, 65536.0, 1e30, math.inf, 2**-25, 3e-45, 3.4e38])
    exact = torch.cat([finite, middles, edges]).view(torch.int32)
    values = torch.cat([exact - 1, exact, exact + 1]).view(FP32)
    values = torch.cat([values, -values]).to(DEVICE)
    rounded = torch.zeros(len(values), dtype=dtype, device=DEVICE)
    salient.salient_one("scatter", rounded, None, values, 0.0)
    assert_same(rounded, values.cpu().to(dtype))
