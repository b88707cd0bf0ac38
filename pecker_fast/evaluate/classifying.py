"""Running a classifier over many images."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pecker_fast.datasets.pixels import to_float
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import SavedClassifier
from pecker_fast.nn.winograd import running_winograd
from pecker_fast.progress import each

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = ["classify", "classify_with_early"]

_AT_ONCE = 500  # images


@torch.no_grad()
def classify(
    classifier: Classifier, images: Tensor, progress: str | None = None
) -> tuple[Tensor, Tensor]:
    """Run the classifier in batches.

    Images are (N, C, H, W), uint8, or floats in [-1, 1]; each batch is moved to where the
    classifier is.

    Returns:
        Logits (N, K) and features (N, F), float32 on the CPU.

    Raises:
        PeckerError: no images, or logits that are not finite.
    """
    if len(images) == 0:
        raise PeckerError("evaluation: there are no images to classify")
    module = classifier if isinstance(classifier, nn.Module) else None
    weight = images if module is None else next(module.parameters(), images)
    batches = each(torch.split(images, _AT_ONCE), progress)
    with nullcontext() if module is None else running_winograd(module):
        parts = [
            classifier.logits_and_features(to_float(part.to(weight.device))) for part in batches
        ]
    logits = torch.cat([part[0] for part in parts]).float().cpu()
    features = torch.cat([part[1] for part in parts]).float().cpu()
    if not torch.isfinite(logits).all():
        raise PeckerError(
            "evaluation: the classifier's logits contain NaN or infinity; "
            "check that the images are finite and lie in [-1, 1]"
        )
    return logits, features


def classify_with_early(
    classifier: Classifier, images: Tensor, progress: str | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same with the means over the pixels of an earlier layer, (N, F'), from the same pass.

    None in their place where a classifier names no such layer.
    """
    if not isinstance(classifier, SavedClassifier):
        return *classify(classifier, images, progress=progress), None
    seen: list[Tensor] = []
    handle = classifier.early.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.mean((2, 3)).float().cpu())
    )
    try:
        logits, features = classify(classifier, images, progress=progress)
    finally:
        handle.remove()
    return logits, features, torch.cat(seen)
