"""The kept classes of two sets of images, so that like is compared with like.

FID of a model that has forgotten a class says something only where that class is missing on both
sides; and where the two sides name their classes in different orders, numbers would mix them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.fidelity import Inception

__all__ = ["KeptFid", "check_same_classes", "check_same_size", "kept_images"]


def kept_images(images: ImageSet, forget: str | None) -> Tensor:
    """The images (N, C, H, W) of all classes but one, which may be missing here.

    Args:
        images: generated or real.
        forget: name of the forgotten class; None keeps all.

    Raises:
        PeckerError: no image is left.
    """
    kept = [i for i, name in enumerate(images.class_names) if name.lower() != _lower(forget)]
    chosen = torch.isin(images.labels, torch.tensor(kept))
    if not bool(chosen.any()):
        raise PeckerError(f"{images.source}: holds no image of a class other than {forget!r}")
    return images.images[chosen]


def check_same_size(real: Tensor, source: str, shape: Sequence[int], whose: str) -> None:
    """Compare the size of real images (N, C, H, W) with that of an image (C, H, W).

    Raises:
        PeckerError: they differ.
    """
    if real.shape[2:] != tuple(shape[1:]):
        sizes = [f"{h}x{w}" for h, w in (real.shape[2:], shape[1:])]
        raise PeckerError(
            f"real images: {source} holds {sizes[0]} pixels, {whose} {sizes[1]}; FID between sizes "
            "measures the scaling: give real images of the same size"
        )


def check_same_classes(
    names: tuple[str, ...], labels: Tensor, source: str, real: ImageSet, forget: str | None
) -> None:
    """Compare the kept classes of generated and real images, by name.

    Args:
        names: of the generated images' classes.
        labels: (N,) of the generated images.
        source: what they are, in words.
        real: the real images.
        forget: name of the forgotten class, which may be there or not, on either side; None: all
            must agree.

    Raises:
        PeckerError: one side has a class that the other has not.
    """
    generated_kept = _present(names, labels, forget)
    real_kept = _present(real.class_names, real.labels, forget)
    if generated_kept == real_kept:
        return
    missing = sorted(generated_kept - real_kept)
    surplus = sorted(real_kept - generated_kept)
    parts = [
        f"{words} {', '.join(map(repr, found[:4]))}{' ...' if len(found) > 4 else ''}"
        for words, found in (
            (f"only {source} has", missing),
            (f"only {real.source} has", surplus),
        )
        if found
    ]
    raise PeckerError(
        f"real images: not of the classes that are judged: {'; '.join(parts)}; give images of "
        "the same classes under the same names (a model's are class_names in its pecker_fast.json)"
    )


class KeptFid:
    """FID of all classes but the forgotten one as a run trains: real images are looked at once."""

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
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        if self._statistics is None:
            self._statistics = self._statistics_of(self._real, "Inception, real")
        found = fid_statistics_to_metric(
            self._statistics_of(images, None), self._statistics, verbose=False
        )
        return float(found["frechet_inception_distance"])

    def _statistics_of(
        self, images: ImageSet, progress: str | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        from torch_fidelity.metric_fid import fid_features_to_statistics

        kept = kept_images(images, self._forget)
        pooled = self._inception.features(kept, images.source, progress=progress).pooled
        statistics: dict[str, np.ndarray[Any, Any]] = fid_features_to_statistics(pooled)
        return statistics


def _present(names: tuple[str, ...], labels: Tensor, forget: str | None) -> set[str]:
    """Lower-case names of the classes that have an image, without the forgotten one."""
    return {names[i].lower() for i in set(labels.tolist())} - {_lower(forget)}


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()
