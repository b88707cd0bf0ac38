"""Masks and top-k on inputs that hypothesis looks for: ties, special values, odd shapes."""

from __future__ import annotations

import pickle
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pecker_fast import backends
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask

# Repeatable, and content with fixtures that hold for all examples of a test alike.
examples = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(torch.Size)
DENSITIES = st.floats(0, 1, exclude_min=True)
GRANULARITIES = st.sampled_from(["out_channel", "block", "tensor"])

# Few distinct values, so that most draws have ties at the threshold.
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, float("inf"), float("-inf")])
ANY32 = st.floats(width=32, allow_nan=False)
ANY64 = st.floats(allow_nan=False)
SMALL = st.integers(-4, 4).map(float)  # whole numbers: their sums are exact


@st.composite
def dense_masks(draw, names=NAMES):
    shapes = draw(st.dictionaries(names, SHAPES, min_size=1, max_size=4))
    dense = {}
    for name, shape in shapes.items():
        entries = draw(st.lists(st.booleans(), min_size=shape.numel(), max_size=shape.numel()))
        dense[name] = torch.tensor(entries, dtype=torch.bool).view(shape)
    assume(any(tensor.any() for tensor in dense.values()))
    return dense


@st.composite
def pairs_of_dense_masks(draw):
    first = draw(dense_masks())
    second = {
        name: torch.tensor(
            draw(st.lists(st.booleans(), min_size=one.numel(), max_size=one.numel())),
            dtype=torch.bool,
        ).view(one.shape)
        for name, one in reversed(first.items())
    }
    assume(any(tensor.any() for tensor in second.values()))
    return first, second


@st.composite
def score_lists(draw, values, dtype=torch.float32):
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    assume(sum(sizes))
    return [
        torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=dtype) for n in sizes
    ]


@st.composite
def score_maps(draw, values):
    shapes = draw(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=4))
    assume(any(shape.numel() for shape in shapes.values()))
    return {
        name: torch.tensor(
            draw(st.lists(values, min_size=shape.numel(), max_size=shape.numel()))
        ).view(shape)
        for name, shape in shapes.items()
    }


# ---- Top-k


def sorted_by_hand(scores, k):
    entries = [
        (-value, number, position)
        for number, tensor in enumerate(scores)
        for position, value in enumerate(tensor.tolist())
    ]
    best = sorted(entries)[:k]
    return [sorted(p for _, t, p in best if t == number) for number in range(len(scores))]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(TIED, torch.float32), (ANY32, torch.float32), (TIED, torch.float64), (ANY64, torch.float64)],
    ids=["ties-float32", "any-float32", "ties-float64", "any-float64"],
)
def test_topk_is_a_stable_sort(backend, values, dtype):
    @settings(examples, max_examples=30 if backend.emulated else 150)
    @given(scores=score_lists(values, dtype), data=st.data())
    def check(scores, data):
        k = data.draw(st.integers(1, sum(tensor.numel() for tensor in scores)))
        found = backend.module.select_topk([tensor.to(backend.device) for tensor in scores], k)
        assert [positions.tolist() for positions in found] == sorted_by_hand(scores, k)

    check()


@given(scores=score_lists(TIED), repeats=st.integers(1500, 2500), data=st.data())
@settings(examples, max_examples=25)
def test_topk_agrees_between_backends_beyond_one_chunk(scores, repeats, data):
    """Enough ties that they run out in the middle of one of several chunks of 65,536 scores."""
    if (reason := backends.available()["cpu"]) is not None:
        pytest.skip(reason)
    scores = [tensor.repeat(repeats) for tensor in scores]
    k = data.draw(st.integers(1, sum(tensor.numel() for tensor in scores)))
    expected = backends.select("reference", "cpu").select_topk(scores, k)
    found = backends.select("cpu", "cpu").select_topk(scores, k)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@examples
@given(scores=score_maps(TIED), density=DENSITIES)
def test_element_masks_have_the_exact_count_and_the_best_entries(scores, density):
    numel = sum(score.numel() for score in scores.values())
    mask = SaliencyMask.from_scores(scores, density)
    assert (mask.numel, mask.density) == (numel, mask.nnz / numel)
    assert mask.nnz == min(numel, max(1, round(density * numel)))
    best = sorted_by_hand([score.flatten() for score in scores.values()], mask.nnz)
    assert {n: p.tolist() for n, p in mask.indices.items()} == dict(zip(scores, best, strict=True))


@examples
@given(scores=score_maps(TIED), densities=st.tuples(DENSITIES, DENSITIES))
def test_a_denser_mask_contains_a_sparser_one(scores, densities):
    small, large = (SaliencyMask.from_scores(scores, density) for density in sorted(densities))
    assert small & large == small
    assert small | large == large


# ---- Groups


def group_by_hand(scores, density, granularity, block_size):
    """Groups in plain Python with exact fractions."""
    groups = []
    for number, score in enumerate(scores.values()):
        values = score.flatten().tolist()
        if granularity == "block":
            length = block_size
        elif granularity == "tensor":
            length = len(values)
        else:
            length = len(values) // score.shape[0] if score.dim() > 1 and len(values) else 1
        for start in range(0, len(values), max(1, length)):
            part = values[start : start + length]
            mean = sum(map(Fraction, part)) / len(part)
            groups.append((-mean, number, range(start, start + len(part))))
    groups.sort(key=lambda group: (*group[:2], group[2].start))
    numel = sum(score.numel() for score in scores.values())
    k = max(1, round(density * numel))
    taken, count = [], 0
    for group in groups:
        count += len(group[2])
        if count > k and taken:
            break
        taken.append(group)
    return {
        name: sorted(p for _, number, positions in taken if number == wanted for p in positions)
        for wanted, name in enumerate(scores)
    }


@examples
@given(
    scores=score_maps(SMALL),
    density=DENSITIES,
    granularity=GRANULARITIES,
    block_size=st.integers(1, 9),
)
def test_groups_against_exact_arithmetic(scores, density, granularity, block_size):
    mask = SaliencyMask.from_scores(scores, density, granularity=granularity, block_size=block_size)
    expected = group_by_hand(scores, density, granularity, block_size)
    # Thirds and sevenths are rounded in float64, but equal fractions round to equal doubles.
    assert {name: p.tolist() for name, p in mask.indices.items()} == expected


@examples
@given(
    scores=score_maps(SMALL), density=DENSITIES, seed=st.integers(0, 2**31), block=st.integers(1, 9)
)
def test_random_masks_have_the_count_of_saliency_masks(scores, density, seed, block):
    for granularity in ("element", "block"):
        mask = SaliencyMask.random(scores, density, seed, granularity=granularity, block_size=block)
        numel = mask.numel
        k = min(numel, max(1, round(density * numel)))
        if granularity == "element":
            assert mask.nnz == k
        else:
            assert mask.nnz <= max(k, block)


# ---- Round trips


@examples
@given(dense=dense_masks())
def test_dense_to_positions_and_back(dense):
    mask = SaliencyMask.from_dense(dense)
    assert mask.nnz == sum(int(tensor.sum()) for tensor in dense.values())
    again = mask.to_dense()
    assert list(again) == list(dense)
    assert all(torch.equal(again[name], tensor) for name, tensor in dense.items())


@examples
@given(dense=dense_masks())
def test_file_and_back(dense):
    mask = SaliencyMask.from_dense(dense)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        mask.save(path)
        again = SaliencyMask.load(path, dense)
    assert again == mask
    assert again.digest == mask.digest
    assert list(again) == list(mask)
    assert pickle.loads(pickle.dumps(mask)) == mask


@examples
@given(dense=dense_masks())
def test_state_dict_and_back(dense):
    """A model's state dict holds a mask as SalUn does: name -> int64 0/1."""
    state = {f"module.{name}": tensor.long() for name, tensor in dense.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.pt"
        torch.save(state, path)
        mask = SaliencyMask.from_dense(path)
    assert list(mask) == list(state)
    assert mask == SaliencyMask.from_dense(state)
    assert {name: p.tolist() for name, p in mask.indices.items()} == {
        f"module.{name}": tensor.flatten().nonzero().flatten().tolist()
        for name, tensor in dense.items()
    }


# ---- Set algebra


def maybe(operation):
    """The mask, or None where it would be empty."""
    try:
        return operation()
    except PeckerError as error:
        assert "the mask is empty" in str(error)
        return None


@examples
@given(pair=pairs_of_dense_masks())
def test_set_algebra_is_boolean_algebra(pair):
    a, b = map(SaliencyMask.from_dense, pair)
    union, intersection = a | b, maybe(lambda: a & b)
    for name in a:
        one, other = pair[0][name], pair[1][name]
        assert torch.equal(union.to_dense()[name], one | other)
        if intersection is not None:
            assert torch.equal(intersection.to_dense()[name], one & other)
    assert union == b | a
    assert a | a == a & a == a
    inverses = maybe(lambda: ~a), maybe(lambda: ~b)
    assert (inverses[0] is None) == (a.nnz == a.numel)
    if None not in inverses:
        assert ~inverses[0] == a
        assert maybe(lambda: ~union) == maybe(lambda: inverses[0] & inverses[1])
    assert union.nnz + (intersection.nnz if intersection else 0) == a.nnz + b.nnz


@examples
@given(pair=pairs_of_dense_masks())
def test_equality_hash_and_digest_agree(pair):
    a, b = map(SaliencyMask.from_dense, pair)
    same = all(torch.equal(pair[0][name], pair[1][name]) for name in a)
    assert (a == b) == same
    assert (a.digest == b.digest) == same
    reordered = SaliencyMask.from_dense(dict(reversed(pair[0].items())))
    assert reordered == a
    assert hash(reordered) == hash(a)
