"""select_topk on every backend against a sort in plain Python, on inputs made to break it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pecker_fast import backends
from pecker_fast.errors import PeckerError

INF, TINY = float("inf"), 1e-45  # TINY is the smallest denormal float32


@pytest.fixture
def select_topk(backend):
    """The backend's function, for tensors that the tests make on the CPU."""

    def move(tensor):
        movable = isinstance(tensor, torch.Tensor) and not tensor.is_meta
        return tensor.to(backend.device) if movable else tensor

    def select(scores, k, names=None):
        found = backend.module.select_topk([move(tensor) for tensor in scores], k, names)
        return [positions.cpu() for positions in found]

    return select


@pytest.fixture
def plan_class():
    """The compiled TopkPlan, where there is one."""
    reason = backends.available()["cpu"]
    if reason is not None:
        pytest.skip(f"backend cpu: {reason}")
    from pecker_fast import _C

    return _C.TopkPlan


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check(select_topk, scores, *ks):
    """The k best (tensor, position) by (-score, tensor, position), in plain Python."""
    entries = [
        (-value, number, position)
        for number, tensor in enumerate(scores)
        for position, value in enumerate(tensor.reshape(-1).tolist())
    ]
    entries.sort()
    for k in ks:
        best = [[] for _ in scores]
        for _, number, position in entries[:k]:
            best[number].append(position)
        found = select_topk(scores, k)
        assert all(positions.dtype == torch.int32 for positions in found)
        assert [positions.tolist() for positions in found] == [sorted(one) for one in best]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SPECIAL = {
    "zeros": [0.0] * 9,
    "signed zeros": [-0.0, 0.0, -0.0, 0.0, -0.0, 0.0],
    "zeros among neighbours": [-TINY, -0.0, TINY, 0.0, -TINY, TINY, -0.0],
    "infinities": [INF, 1.0, -INF, INF, 3e38, -3e38, -INF, 0.0],
    "all infinite": [INF] * 5,
    "all minus infinite": [-INF] * 5,
    "negative": [-1.0, -2.0, -1.0, -0.5, -3.0],
    "denormals": [TINY, 2 * TINY, 1.2e-38, TINY, 0.0, -TINY],
    "last bit": [1.0, 1.0000001, 1.0, 1.0000002, 0.99999994, 1.0000001],
    "one tie to break": [2.0, 1.0, 2.0, 1.0, 1.0, 3.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("values", SPECIAL.values(), ids=SPECIAL.keys())
def test_special_values_for_every_k(select_topk, values, dtype):
    scores = torch.tensor(values, dtype=dtype)
    check(select_topk, [scores], *range(1, len(values) + 1))


# 512 scores are one block of the C++ kernel, 65,536 one chunk of its work list.
@pytest.mark.parametrize("numel", [1, 7, 511, 512, 513, 1025, 4097, 65535, 65536, 65537, 200_003])
def test_sizes(select_topk, numel):
    scores = normal(numel)
    ks = {1, max(1, numel // 10), max(1, numel // 2), max(1, numel - 1), numel}
    check(select_topk, [scores], *sorted(ks))


def test_many_ties_across_chunks_and_tensors(select_topk):
    scores = [
        torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(n)).float()
        for n in (70_000, 1, 140_001, 3, 65_536)
    ]
    total = sum(tensor.numel() for tensor in scores)
    check(select_topk, scores, 1, 1000, 90_000, 100_003, 200_000, total - 1, total)


def test_values_that_share_their_leading_bits(select_topk):
    """Every score falls into one bin of the first and second histogram."""
    bits = torch.randperm(1024, generator=torch.Generator().manual_seed(3)) + 0x3F800000
    scores = bits.to(torch.int32).view(torch.float32).repeat(3)
    check(select_topk, [scores], 1, 2, 3, 4, 1500, 3071, 3072)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_any_bit_pattern(select_topk, dtype):
    """All exponents and both signs, not only the few that a normal distribution has."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    info = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(4)
    bits = torch.randint(info.min, info.max, (20_000,), dtype=integer, generator=generator)
    scores = bits.view(dtype)
    scores = scores[~scores.isnan()]
    check(select_topk, [scores], 1, 777, 10_000, scores.numel() - 5)


def test_empty_and_zero_dim_tensors(select_topk):
    scores = [torch.empty(0), torch.tensor(2.0), torch.empty(3, 0), torch.tensor([1.0, 2.0, 3.0])]
    check(select_topk, scores, *range(1, 5))


def test_positions_are_logical_whatever_the_strides(select_topk):
    base = normal(4, 6, 5, 3)
    scores = [
        base.to(memory_format=torch.channels_last),
        base.transpose(0, 2),
        base[:, ::2, :, 1],
        torch.tensor([1.0, 0.5]).unsqueeze(1).expand(2, 7),
        base.flip(0),
    ]
    assert not any(tensor.is_contiguous() for tensor in scores[:4])
    check(select_topk, scores, 1, 50, 300, 700)


def test_scores_are_not_written_to(select_topk):
    scores = normal(1000)
    before = scores.clone()
    select_topk([scores], 100)
    assert torch.equal(scores, before)


def test_scores_that_require_grad(select_topk):
    scores = normal(10).requires_grad_()
    check(select_topk, [scores.detach()], 3)
    assert not select_topk([scores], 3)[0].requires_grad


def test_double_scores_are_not_rounded(select_topk):
    scores = 1.0 + torch.arange(50, dtype=torch.float64).flip(0) * 1e-12
    assert scores.float().unique().numel() == 1
    scores[10], scores[40] = 1.0 + 1e-9, 1.0 + 2e-9
    check(select_topk, [scores], 2)
    check(select_topk, [torch.ones(3), scores], 7)  # float32 beside it is widened, not narrowed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_low_precision_scores(select_topk, dtype):
    check(select_topk, [normal(3000).to(dtype), normal(10, seed=1)], 400)


def test_extreme_doubles(select_topk):
    """Magnitudes that float32 would turn into 0 and inf."""
    values = [1e300, 1e-300, -1e300, 5e-324, 0.0, -5e-324, 1.7e308, INF, -INF]
    scores = torch.tensor(values, dtype=torch.float64)
    check(select_topk, [scores], *range(1, len(values) + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_any_number_of_threads_gives_the_same(plan_class, restore_threads, dtype):
    select_topk = backends.select("cpu", "cpu").select_topk
    # Below 2^19 scores per thread the kernel takes fewer threads than it may.
    scores = [normal(2_000_000, dtype=dtype).mul(4).round(), normal(500_001, seed=1, dtype=dtype)]
    torch.set_num_threads(1)
    expected = select_topk(scores, 50_000)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for one, other in zip(select_topk(scores, 50_000), expected, strict=True):
            assert torch.equal(one, other)


def test_flushed_denormals_keep_their_rank(plan_class):
    """The kernel ranks the stored bits: the CPU's denormal mode must not change a mask.

    torch.sort, and with it the reference, takes them all for zeros in this mode.
    """
    scores = torch.tensor([1, 4, 3, 0], dtype=torch.int32).view(torch.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        found = backends.select("cpu", "cpu").select_topk([scores], 2)
    finally:
        torch.set_flush_denormal(False)
    assert found[0].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_an_error_that_names_the_tensor(select_topk, dtype, sign):
    nan = torch.tensor(float("nan"), dtype=dtype).copysign(torch.tensor(sign, dtype=dtype))
    scores = [normal(70_000, dtype=dtype), normal(140_000, seed=1, dtype=dtype)]
    scores[1][139_999] = nan
    with pytest.raises(PeckerError, match=r"NaN in scores\[1\]"):
        select_topk(scores, 5)
    with pytest.raises(PeckerError, match=r"NaN in the scores of 'conv\.weight'"):
        select_topk(scores, 5, ["conv.bias", "conv.weight"])
    scores[0][0] = nan
    with pytest.raises(PeckerError, match=r"NaN in scores\[0\]"):  # the first, always
        select_topk(scores, 5)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_out_of_range(select_topk, k):
    with pytest.raises(PeckerError, match="k must be between 1 and the number of scores, 10"):
        select_topk([normal(10)], k)


def test_bad_arguments(select_topk):
    with pytest.raises(PeckerError, match="k must be between"):
        select_topk([], 1)
    with pytest.raises(TypeError, match="k must be an int, got float"):
        select_topk([normal(10)], 2.0)
    with pytest.raises(TypeError, match=r"scores\[1\].*floating-point.*torch.int64"):
        select_topk([normal(3), torch.arange(3)], 1)
    with pytest.raises(PeckerError, match=r"no values in scores\[0\], on the meta device"):
        select_topk([torch.empty(3, device="meta")], 1)
    with pytest.raises(PeckerError, match="2,147,483,648 entries in the scores of 'big'"):
        select_topk([torch.empty(2**31, device="meta")], 1, ["big"])


def test_compiled_plan_checks_its_own_arguments(plan_class):
    scores = normal(10)
    address = [scores.data_ptr()]
    for arguments in [(address, [10], 0), (address, [10], 11), (address, [10, 1], 1)]:
        with pytest.raises(ValueError, match="TopkPlan"):
            plan_class(*arguments, double_scores=False, threads=1)
    with pytest.raises(ValueError, match="threads"):
        plan_class(address, [10], 1, double_scores=False, threads=0)
    plan = plan_class(address, [10], 3, double_scores=False, threads=1)
    with pytest.raises(ValueError, match=r"TopkPlan\.write"):
        plan.write([])


MEMORY_SCRIPT = """
import torch
from pecker_fast.backends.cpu import select_topk

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

generator = torch.Generator().manual_seed(0)
scores = [torch.rand(n, generator=generator) for n in (40_000_000, 3, 59_999_997)]
select_topk([scores[1]], 1)
before = peak()
positions = select_topk(scores, 1_000_000)
growth = peak() - before - sum(p.numel() * 4 for p in positions)
control = torch.cat(scores)
print(growth, peak() - before)
"""


@pytest.mark.slow
def test_extra_memory_does_not_grow_with_the_scores(plan_class):
    """Below 64 MiB at 860 M scores, the result not counted.

    100 M scores are measured: the peak resident memory of a fresh process grows by a fraction of
    the 381 MiB that a concatenation takes (the control, so that the measurement can fail). What
    depends on the number of scores is the work list alone, 56 bytes per 65,536 of them; so the
    kernel's own figures for 10 M and 20 M scores give that for 860 M.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/status")
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True
    )
    growth, control = (int(word) for word in result.stdout.split())
    assert control > 350 << 20
    assert growth < 16 << 20

    scores = torch.zeros(20_000_000)
    small, large = (
        plan_class([scores.data_ptr()], [n], 1, double_scores=False, threads=8).workspace_bytes
        for n in (10_000_000, 20_000_000)
    )
    assert large > small
    assert small + 85 * (large - small) < 64 << 20
