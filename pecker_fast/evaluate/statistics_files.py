"""Per-class statistics of real images: read from a file, or computed from the images in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.forgetting import classify
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.models import ModelFolder

__all__ = ["load_statistics"]


def load_statistics(path: Path, model: ModelFolder, classifier: Classifier) -> ClassStatistics:
    """Read per-class feature statistics, or compute them from real images.

    Args:
        path: a file of `ClassStatistics.save`, or an .npz with `images` (N, C, H, W), uint8 or
            floats in [-1, 1], and `labels` (N,).
        model: for its classes and the size of its images.
        classifier: gives the features of the real images.

    Raises:
        PeckerError: missing, truncated, or of other classes or sizes.
    """
    if path.suffix != ".npz":
        return ClassStatistics.load(path)
    try:
        with np.load(path) as file:
            pixels, numbers = file["images"], file["labels"]
    except FileNotFoundError as error:
        raise PeckerError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise PeckerError(
            f"{path}: cannot be read ({error}); expected an .npz with arrays images and labels"
        ) from error
    images = torch.from_numpy(pixels).float()
    if pixels.dtype == np.uint8:
        images = images / 127.5 - 1.0
    if images.shape[1:] != model.image_shape or numbers.shape != images.shape[:1]:
        raise PeckerError(
            f"{path}: expected images (N, {', '.join(map(str, model.image_shape))}) and N labels, "
            f"got {tuple(images.shape)} and {tuple(numbers.shape)}"
        )
    _, features = classify(classifier, images, progress="real images")
    labels = torch.from_numpy(numbers.astype(np.int64))
    return ClassStatistics.from_features(features, labels, model.num_classes, source=path.name)
