"""Fréchet distance: hand computations, deficient rank, files."""

import math

import numpy as np
import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.frechet import (
    ClassStatistics,
    FeatureStatistics,
    frechet_distance,
    measured_distance,
)


def statistics(mean, cov, count=100):
    to64 = {"dtype": torch.float64}
    return FeatureStatistics(torch.tensor(mean, **to64), torch.tensor(cov, **to64), count)


def test_diagonal_gaussians_by_hand():
    a = statistics([1.0, -2.0], [[4.0, 0.0], [0.0, 9.0]])
    b = statistics([3.0, -1.0], [[1.0, 0.0], [0.0, 16.0]])
    # (2^2 + 1^2) + (2 - 1)^2 + (3 - 4)^2
    assert frechet_distance(a, b) == pytest.approx(7.0, abs=1e-12)
    assert frechet_distance(b, a) == pytest.approx(7.0, abs=1e-12)


def test_correlated_gaussians_by_hand():
    # C1 = [[2, 1], [1, 2]] has eigenvalues 3 and 1, C2 = I: tr(C1^1/2) = sqrt(3) + 1.
    a = statistics([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]])
    b = statistics([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    expected = 4.0 + 2.0 - 2.0 * (math.sqrt(3.0) + 1.0)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_a_jackknife():
    generator = torch.Generator().manual_seed(0)
    features, real = (
        torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (300, 5000)
    )
    features = features @ torch.randn(6, 6, generator=generator, dtype=torch.float64) + 0.3
    target = FeatureStatistics.from_features(real)
    left_out = torch.tensor([
        frechet_distance(
            FeatureStatistics.from_features(torch.cat([features[:i], features[i + 1 :]])), target
        )
        for i in range(300)
    ])  # fmt: skip
    error = float(((left_out - left_out.mean()).square().sum() * 299 / 300).sqrt())
    distance = frechet_distance(FeatureStatistics.from_features(features), target)
    measured, (low, high) = measured_distance(features, target)
    assert measured == distance
    assert (low + high) / 2 == pytest.approx(distance, rel=1e-12)
    # They differ by terms of order 1/N.
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=0.03)
    assert measured_distance(features[:6], target)[1] is None
    dead = torch.cat([features, torch.zeros(300, 1)], dim=1)  # a feature that never varies
    wide = FeatureStatistics.from_features(torch.cat([real, torch.zeros(5000, 1)], dim=1))
    assert measured_distance(dead, wide)[1] == pytest.approx((low, high), rel=1e-9)


def test_against_the_square_root_of_the_plain_product():
    rng = np.random.default_rng(0)
    stats = [
        FeatureStatistics.from_features(torch.tensor(rng.normal(size=(300, 8)) @ mix + shift))
        for mix, shift in ((rng.normal(size=(8, 8)), 0.3), (rng.normal(size=(8, 8)), -0.1))
    ]
    (m1, c1), (m2, c2) = [(s.mean.numpy(), s.cov.numpy()) for s in stats]
    # The textbook form: eigenvalues of C1 C2, which is not symmetric but has real ones.
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).real)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * roots.sum()
    assert frechet_distance(*stats) == pytest.approx(expected, rel=1e-10)


def test_deficient_rank():
    # Ten samples in 64 dimensions: rank 9. The distance to itself is 0, not NaN and not 1e-7.
    features = torch.randn(10, 64, dtype=torch.float64)
    a = FeatureStatistics.from_features(features)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)
    shifted = FeatureStatistics.from_features(features + 0.5)
    assert frechet_distance(a, shifted) == pytest.approx(64 * 0.25, rel=1e-12)


def test_one_dead_feature_and_a_point_mass():
    point = statistics([1.0, 0.0], [[0.0, 0.0], [0.0, 0.0]])
    line = statistics([0.0, 0.0], [[4.0, 0.0], [0.0, 0.0]])
    assert frechet_distance(point, line) == pytest.approx(1.0 + 4.0, abs=1e-12)


def test_mean_and_covariance_match_numpy():
    features = torch.randn(50, 5)
    stats = FeatureStatistics.from_features(features)
    wide = features.double().numpy()
    assert stats.mean.dtype == stats.cov.dtype == torch.float64
    assert np.allclose(stats.mean.numpy(), wide.mean(0), atol=1e-14)
    assert np.allclose(stats.cov.numpy(), np.cov(wide, rowvar=False), atol=1e-14)
    assert stats.count == 50


def test_pooling_classes_equals_computing_from_all_features():
    labels = torch.arange(90) % 3
    features = torch.randn(90, 4) * (1 + labels[:, None]) + labels[:, None]
    stats = ClassStatistics.from_features(features[:80], labels[:80], 3)
    for classes in ([0, 1, 2], [0, 2], [1]):
        chosen = torch.isin(labels[:80], torch.tensor(classes))
        expected = FeatureStatistics.from_features(features[:80][chosen])
        pooled = stats.pooled(classes)
        assert torch.allclose(pooled.mean, expected.mean, atol=1e-13)
        assert torch.allclose(pooled.cov, expected.cov, atol=1e-13)
        assert pooled.count == expected.count


def test_a_class_without_images():
    with pytest.raises(PeckerError, match="class 2 has 0 images"):
        ClassStatistics.from_features(torch.randn(6, 4), torch.arange(6) % 2, 3)


def test_save_and_load(tmp_path):
    features, labels = torch.randn(20, 6), torch.arange(20) % 2
    stats = ClassStatistics.from_features(features, labels, 2, source="test images")
    path = tmp_path / "statistics.safetensors"
    stats.save(path)
    loaded = ClassStatistics.load(path)
    assert torch.equal(loaded.mean, stats.mean) and torch.equal(loaded.cov, stats.cov)
    assert loaded.count.tolist() == [10, 10] and loaded.source == "test images"
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.safetensors"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.randn(1, 4), "at least 2 samples"),
        (torch.full((3, 2), float("nan")), "NaN"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(PeckerError, match=message):
        FeatureStatistics.from_features(features)


def test_different_feature_spaces():
    a, b = (FeatureStatistics.from_features(torch.randn(9, f)) for f in (3, 4))
    with pytest.raises(PeckerError, match="3 features against 4"):
        frechet_distance(a, b)
