"""Fréchet distance between two sets of features, in float64.

For Gaussians with means m1, m2 and covariances C1, C2 (the FID of the literature, in the feature
space of whatever classifier is used):

    d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1^1/2 C2 C1^1/2)^1/2)

The last trace is the sum of the singular values of C1^1/2 C2^1/2, and the two roots come from
symmetric eigendecompositions: no imaginary part to throw away, and covariances of deficient rank
(fewer samples than features, a dead feature) are ordinary input.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.intervals import Interval, Z
from pecker_fast.torch_files import open_tensors, save_tensors

__all__ = ["ClassStatistics", "FeatureStatistics", "frechet_distance", "measured_distance"]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of `count` feature vectors."""

    mean: Tensor  # (F,) float64
    cov: Tensor  # (F, F) float64, with the divisor count - 1
    count: int  # number of feature vectors
    source: str = ""  # what the features were taken from, in words ("" = not said)

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.cov).all()):
            raise PeckerError("FeatureStatistics: the features contain NaN or infinity")

    @classmethod
    def from_features(cls, features: Tensor, source: str = "") -> FeatureStatistics:
        """Mean and covariance of features (N, F) of any float dtype.

        Raises:
            PeckerError: fewer than two samples, or NaN or infinity among them.
        """
        if len(features) < 2:
            raise PeckerError(f"FeatureStatistics: at least 2 samples needed, got {len(features)}")
        values = features.detach().to("cpu", torch.float64)
        mean = values.mean(dim=0)
        centred = values - mean
        return cls(mean, centred.T @ centred / (len(values) - 1), len(values), source)


@dataclass(frozen=True)
class ClassStatistics:
    """Mean and covariance per class, from which those of any set of classes follow exactly."""

    mean: Tensor  # (K, F) float64, one row per class
    cov: Tensor  # (K, F, F) float64, with the divisor count - 1
    count: Tensor  # (K,) int64, feature vectors per class
    source: str = ""  # what the features were taken from, in words ("" = not said)
    # The same of the same images in an earlier layer's features, or None.
    early: ClassStatistics | None = None

    def __post_init__(self) -> None:
        classes, size = self.mean.shape if self.mean.ndim == 2 else (-1, -1)
        if self.cov.shape != (classes, size, size) or self.count.shape != (classes,):
            raise PeckerError(
                "ClassStatistics: expected mean (K, F), cov (K, F, F) and count (K,), got "
                f"{tuple(self.mean.shape)}, {tuple(self.cov.shape)}, {tuple(self.count.shape)}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.mean.shape[0]

    @classmethod
    def from_features(
        cls,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        source: str = "",
        early: Tensor | None = None,
    ) -> ClassStatistics:
        """Statistics of features (N, F), and (N, F') of an earlier layer, with labels (N,).

        Labels lie in [0, num_classes).

        Raises:
            PeckerError: a class with fewer than two samples, or NaN or infinity among the features.
        """
        rows = []
        for index in range(num_classes):
            chosen = features[labels == index]
            if len(chosen) < 2:
                raise PeckerError(
                    f"ClassStatistics: class {index} has {len(chosen)} images, at least 2 needed"
                )
            rows.append(FeatureStatistics.from_features(chosen))
        return cls(
            torch.stack([row.mean for row in rows]),
            torch.stack([row.cov for row in rows]),
            torch.tensor([row.count for row in rows]),
            source,
            None if early is None else cls.from_features(early, labels, num_classes, source),
        )

    def pooled(self, classes: Iterable[int]) -> FeatureStatistics:
        """The statistics of all images of `classes` together."""
        chosen = torch.tensor(sorted(set(classes)))
        mean, cov = self.mean[chosen], self.cov[chosen]
        count = self.count[chosen].double()
        total = count.sum()
        centre = (count[:, None] * mean).sum(dim=0) / total
        offset = mean - centre
        within = ((count - 1)[:, None, None] * cov).sum(dim=0)
        between = (count[:, None] * offset).T @ offset
        return FeatureStatistics(centre, (within + between) / (total - 1), int(total), self.source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all; the earlier layer's in half the digits."""
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "cov", "count")}
        if self.early is not None:
            tensors |= {f"early_{n}": getattr(self.early, n).float() for n in ("mean", "cov")}
        save_tensors(path, tensors, {"source": self.source})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassStatistics:
        """Read what `save` wrote.

        Raises:
            PeckerError: the file is missing, truncated, or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise PeckerError(f"feature statistics {path}: no such file")
        with open_tensors(path, "what ClassStatistics.save writes is: compute it again") as file:
            source = (file.metadata() or {}).get("source", "")
            mean, cov, count = (file.get_tensor(name) for name in ("mean", "cov", "count"))
            more = [n for n in ("early_mean", "early_cov") if n in file.keys()]
            early = [file.get_tensor(name) for name in more]
        parts = [mean, cov, *early]
        counts = not count.is_floating_point() and bool(((count >= 0) & (count < 2**40)).all())
        if not (all(part.is_floating_point() for part in parts) and counts and len(early) != 1):
            raise PeckerError(
                f"feature statistics {path}: expected floats mean and cov, and counts of images; "
                "compute it again"
            )
        if not all(part.isfinite().all() for part in parts):
            raise PeckerError(f"feature statistics {path}: hold NaN or infinity; compute it again")
        try:
            before = None
            if early:
                before = cls(early[0].double(), early[1].double(), count.long(), source)
            return cls(mean.double(), cov.double(), count.long(), source, before)
        except PeckerError as error:
            raise PeckerError(f"feature statistics {path}: {error}; compute it again") from None


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Fréchet distance between two Gaussians; 0 for equal ones, never negative.

    Raises:
        PeckerError: the two come from feature spaces of different dimension.
    """
    if a.mean.shape != b.mean.shape:
        raise PeckerError(
            f"frechet_distance: {a.mean.shape[0]} features against {b.mean.shape[0]}; both "
            "statistics must come from the same classifier"
        )
    cross = torch.linalg.svdvals(_symmetric_root(a.cov) @ _symmetric_root(b.cov)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(float(distance), 0.0)


def measured_distance(features: Tensor, real: FeatureStatistics) -> tuple[float, Interval | None]:
    """Fréchet distance, and its 95 % interval: other samples, as many, from the same real images.

    The infinitesimal jackknife: the distance moves, to first order, by the mean over the samples of

        2 (m1 - m2) . (x - m1) + (x - m1)^T (I - T) (x - m1) - tr((I - T) C1),

    where T = C1^-1/2 (C1^1/2 C2 C1^1/2)^1/2 C1^-1/2 transports one Gaussian to the other; so its
    standard error is the standard deviation of these numbers over the root of N. That costs as much
    as one distance more. A bootstrap costs hundreds and is off as well: drawn with repetition,
    samples are fewer, and the distance of fewer is larger. That of few samples is in neither:
    intervals of equal numbers of samples compare.

    Args:
        features: (N, F) of the generated images.
        real: of the real images; what they would be among others is not in the interval.

    Returns:
        The distance and the interval, which is None where there are no more samples than features:
        then the covariance is singular and the distance says more of their number than of the
        images.

    Raises:
        PeckerError: see `FeatureStatistics.from_features` and `frechet_distance`.
    """
    found = FeatureStatistics.from_features(features)
    distance = frechet_distance(found, real)
    if found.count <= features.shape[1]:
        return distance, None
    root = _symmetric_root(found.cov)
    inverse = torch.linalg.pinv(root, hermitian=True)
    transport = inverse @ _symmetric_root(root @ real.cov @ root) @ inverse
    centred = features.detach().to("cpu", torch.float64) - found.mean
    # (I - T) x by rows; a direction without variance has no share in it.
    moved = centred - centred @ transport
    moves = 2 * centred @ (found.mean - real.mean) + (moved * centred).sum(dim=1)
    half = Z * float(moves.std()) / found.count**0.5
    return distance, Interval(max(distance - half, 0.0), distance + half)


def _symmetric_root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive semidefinite matrix (F, F)."""
    eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    # A deficient rank leaves eigenvalues of about +-1e-16 where 0 is meant; their roots, 1e-8,
    # would be visible in the result.
    noise = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(torch.float64).eps
    eigenvalues = torch.where(eigenvalues > noise, eigenvalues, torch.zeros_like(eigenvalues))
    root: Tensor = (vectors * eigenvalues.sqrt()) @ vectors.T
    return root
