"""FID of the kept classes again and again, as a run trains: real images are looked at once."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.evaluate.fidelity import Inception
from pecker_fast.evaluate.kept import kept_images

__all__ = ["KeptFid"]


class KeptFid:
    """Measures generated images against the real images of all classes but the forgotten one."""

    def __init__(self, inception: Inception, real: ImageSet, forget: str) -> None:
        """Nothing is computed yet.

        Args:
            inception: gives the features.
            real: real images of all classes.
            forget: name of the class to forget.
        """
        self._inception = inception
        self._real = real
        self._forget = forget
        self._statistics: dict[str, np.ndarray[Any, Any]] | None = None

    def measure(self, images: ImageSet) -> float:
        """FID of generated images, those of the forgotten class left out.

        It grows as images become fewer: compare equal counts only.

        Raises:
            PeckerError: see `Inception.features`.
        """
        if self._statistics is None:
            self._statistics = self._statistics_of(self._real, "Inception, real")
        fid = importlib.import_module("torch_fidelity.metric_fid")
        found = fid.fid_statistics_to_metric(
            self._statistics_of(images, None), self._statistics, verbose=False
        )
        return float(found["frechet_inception_distance"])

    def _statistics_of(
        self, images: ImageSet, progress: str | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        kept: Tensor = kept_images(images, self._forget)
        pooled = self._inception.features(kept, images.source, progress=progress).pooled
        fid = importlib.import_module("torch_fidelity.metric_fid")
        statistics: dict[str, np.ndarray[Any, Any]] = fid.fid_features_to_statistics(pooled)
        return statistics
