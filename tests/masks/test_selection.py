"""Which entries a SaliencyMask takes: from scores, in full, at random."""

from __future__ import annotations

import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask


def selected(mask):
    return {name: positions.tolist() for name, positions in mask.indices.items()}


# ---- from_scores


def test_per_tensor_count_is_exact(scores):
    scores["empty"] = torch.empty(0, 4)
    mask = SaliencyMask.from_scores(scores, 0.25, scope="per_tensor")
    for row in mask.stats():
        assert row.nnz == (max(1, round(0.25 * row.numel)) if row.numel else 0), row
    for name, positions in mask.indices.items():
        k = positions.numel()
        best = scores[name].flatten().topk(k).indices.sort().values
        assert positions.tolist() == best.tolist()


def test_double_scores_are_ranked_as_doubles():
    score = 1.0 + torch.tensor([0, 3, 1, 2], dtype=torch.float64) * 1e-12
    assert selected(SaliencyMask.from_scores({"a": score}, 0.5)) == {"a": [1, 3]}


def test_positions_do_not_depend_on_the_memory_format(scores):
    strided = {
        name: s.to(memory_format=torch.channels_last) if s.dim() == 4 else s
        for name, s in scores.items()
    }
    for granularity in ("element", "out_channel", "block"):
        one = SaliencyMask.from_scores(scores, 0.3, granularity=granularity)
        assert one == SaliencyMask.from_scores(strided, 0.3, granularity=granularity)


def test_the_number_of_threads_does_not_matter(scores):
    before = torch.get_num_threads()
    try:
        for granularity in ("element", "out_channel", "block", "tensor"):
            masks = set()
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                masks.add(SaliencyMask.from_scores(scores, 0.4, granularity=granularity))
            assert len(masks) == 1
    finally:
        torch.set_num_threads(before)


# ---- Coarser granularities


def test_per_tensor_scope_takes_a_group_of_each_parameter():
    scores = {"a": torch.rand(4, 5), "b": torch.rand(6), "empty": torch.empty(0, 2)}
    mask = SaliencyMask.from_scores(scores, 0.01, scope="per_tensor", granularity="out_channel")
    assert [row.nnz for row in mask.stats()] == [5, 1, 0]


# ---- Refusals of from_scores


@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.0000001, 2, float("nan"), float("inf")])
def test_density_outside_its_range(scores, density):
    with pytest.raises(PeckerError, match=r"density must be in \(0, 1\]"):
        SaliencyMask.from_scores(scores, density)


@pytest.mark.parametrize("granularity", ["element", "out_channel", "block", "tensor"])
def test_nan_scores_name_the_parameter(scores, granularity):
    scores["2.weight"][1, 2, 0, 0] = float("nan")
    with pytest.raises(PeckerError, match=r"NaN in the scores of '2\.weight'"):
        SaliencyMask.from_scores(scores, 0.5, granularity=granularity)


def test_bad_arguments_of_from_scores(scores):
    with pytest.raises(TypeError, match="density must be a number, got str"):
        SaliencyMask.from_scores(scores, "0.5")
    with pytest.raises(PeckerError, match="scope must be one of global, per_tensor; got 'layer'"):
        SaliencyMask.from_scores(scores, 0.5, scope="layer")
    with pytest.raises(PeckerError, match=r"granularity must be one of .*; got 'channel'"):
        SaliencyMask.from_scores(scores, 0.5, granularity="channel")
    with pytest.raises(PeckerError, match="block_size must be at least 1, got 0"):
        SaliencyMask.from_scores(scores, 0.5, granularity="block", block_size=0)
    with pytest.raises(PeckerError, match="would make every tensor salient"):
        SaliencyMask.from_scores(scores, 0.5, scope="per_tensor", granularity="tensor")
    with pytest.raises(PeckerError, match="scores must hold at least one entry, got 0 parameters"):
        SaliencyMask.from_scores({}, 0.5)
    with pytest.raises(PeckerError, match="at least one entry, got 1 parameters"):
        SaliencyMask.from_scores({"a": torch.empty(0)}, 0.5)
    with pytest.raises(TypeError, match=r"'a' must be a floating-point .* torch\.int64"):
        SaliencyMask.from_scores({"a": torch.arange(3)}, 0.5)
    with pytest.raises(TypeError, match="must map parameter names to tensors, got str -> list"):
        SaliencyMask.from_scores({"a": [1.0]}, 0.5)
    with pytest.raises(TypeError, match="mapping from parameter names to tensors, got Tensor"):
        SaliencyMask.from_scores(torch.rand(3), 0.5)
    with pytest.raises(PeckerError, match="scores of 'a' are on the meta device"):
        SaliencyMask.from_scores({"a": torch.rand(3, device="meta")}, 0.5)


@pytest.mark.parametrize("make", ["from_scores", "full", "random", "from_dense"])
def test_a_parameter_beyond_int32_is_refused_by_name(make):
    tensors = {"small": torch.rand(3), "huge.weight": torch.empty(2**31, device="meta")}
    arguments = {"from_scores": (0.5,), "full": (), "random": (0.5, 0), "from_dense": ()}[make]
    if make == "from_dense":
        tensors["small"] = torch.ones(3)
    with pytest.raises(PeckerError, match=r"'huge\.weight' has 2,147,483,648 entries"):
        getattr(SaliencyMask, make)(tensors, *arguments)


# ---- full and random


def test_full(model, scores):
    mask = SaliencyMask.full(model)
    assert mask.nnz == mask.numel == sum(p.numel() for p in model.parameters())
    assert mask.density == 1.0
    assert all(dense.all() for dense in mask.to_dense().values())
    assert list(mask) == [name for name, _ in model.named_parameters()]
    assert mask == SaliencyMask.from_scores(scores, 1.0)


def test_full_takes_trainable_parameters_and_shapes_only(model):
    model[0].requires_grad_(False)
    assert "0.weight" not in SaliencyMask.full(model)
    meta = {"a": torch.empty(3, 2, device="meta")}
    assert selected(SaliencyMask.full(meta)) == {"a": [0, 1, 2, 3, 4, 5]}
    model.requires_grad_(False)
    with pytest.raises(PeckerError, match="Sequential has no trainable parameter"):
        SaliencyMask.full(model)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module or a mapping.*got int"):
        SaliencyMask.full(3)


@pytest.mark.parametrize("granularity", ["element", "out_channel", "block"])
def test_random_has_the_count_and_follows_the_seed(model, granularity):
    def draw(seed):
        return SaliencyMask.random(model, 0.3, seed, granularity=granularity, block_size=5)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    numel = draw(1).numel
    assert 0.25 * numel < draw(1).nnz <= round(0.3 * numel)
    if granularity == "element":
        assert draw(1).nnz == round(0.3 * numel)


def test_random_leaves_the_global_random_state_alone(model):
    before = torch.get_rng_state()
    SaliencyMask.random(model, 0.3, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_rows_are_equally_likely_whatever_their_size():
    """A mean of uniform draws per row would take single entries far more often than long rows."""
    shapes = {"weight": torch.empty(50, 40), "bias": torch.empty(50)}
    rows, singles = 0, 0
    for seed in range(40):
        mask = SaliencyMask.random(shapes, 0.1, seed, granularity="out_channel")
        rows += mask.indices["weight"].numel() // 40
        singles += mask.indices["bias"].numel()
    # Binomial with p = 1/2: five standard deviations either way.
    drawn = rows + singles
    assert abs(rows - drawn / 2) < 2.5 * drawn**0.5


def test_random_is_spread_over_positions():
    mask = SaliencyMask.random({"a": torch.empty(100_000)}, 0.5, 0)
    halves = int((mask.indices["a"] < 50_000).sum())
    assert abs(halves - 25_000) < 5 * (100_000 / 16) ** 0.5
