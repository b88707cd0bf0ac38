"""Per-class statistics of real images: read from a file, or computed from the images in one."""

from __future__ import annotations

from pathlib import Path

from pecker_fast.datasets.image_files import load_image_files
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.classifying import classify_with_early
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.models import ModelFolder

__all__ = ["load_statistics"]


def load_statistics(path: Path, model: ModelFolder, classifier: Classifier) -> ClassStatistics:
    """Read per-class feature statistics, or compute them from real images.

    The file is of `ClassStatistics.save`, or an .npz of images and labels, see `load_image_files`.

    Raises:
        PeckerError: missing, truncated, or of other classes or sizes.
    """
    if path.suffix != ".npz":
        return ClassStatistics.load(path)
    real = load_image_files(path)
    if real.labels is None or real.images.shape[1:] != model.image_shape:
        raise PeckerError(
            f"{path}: expected images (N, {', '.join(map(str, model.image_shape))}) and N labels, "
            f"got {tuple(real.images.shape)} and {'no' if real.labels is None else 'N'} labels"
        )
    _, features, early = classify_with_early(classifier, real.images, "real images")
    return ClassStatistics.from_features(features, real.labels, model.num_classes, path.name, early)
