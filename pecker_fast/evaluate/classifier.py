"""Classifiers that judge generated images: a small one, or a ResNet-34 (also published).

Every classifier maps images (N, C, H, W) in [-1, 1], float32, to logits (N, num_classes) and to
features (N, F) for the Fréchet distance. See `Classifier` for the contract.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import (
    ACCEPTED,
    SavedClassifier,
    check_classes,
    check_outputs,
    check_sizes,
    published_weights,
    read_config,
)
from pecker_fast.evaluate.resnet import ResNetClassifier

__all__ = ["Classifier", "SmallClassifier", "load_classifier"]

FEATURES = 64
_POOLED = 4  # side of the last feature map, whatever the size of the image


@runtime_checkable
class Classifier(Protocol):
    """What `pecker_fast.evaluate` needs of a classifier."""

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (N, C, H, W) in [-1, 1] to logits (N, num_classes) and features (N, F)."""
        ...


class SmallClassifier(SavedClassifier):
    """Six 3x3 convolutions with GroupNorm in three resolutions, then 64 features, then logits.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image.
        width: channels at full resolution; doubled at each of the two reductions.
        dropout: probability at which a feature is dropped in training mode.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 1, width: int = 32, dropout: float = 0.1
    ) -> None:
        check_sizes(self, num_classes=num_classes, in_channels=in_channels, width=width)
        if not isinstance(dropout, float | int) or not 0 <= dropout < 1:
            raise PeckerError(f"SmallClassifier: dropout must be in [0, 1), got {dropout!r}")
        super().__init__(
            num_classes=num_classes, in_channels=in_channels, width=width, dropout=dropout
        )
        self.dropout = dropout
        stages = [
            _stage(in_channels, width),
            nn.MaxPool2d(2, ceil_mode=True),
            _stage(width, 2 * width),
            nn.MaxPool2d(2, ceil_mode=True),
            _stage(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(_POOLED),
            nn.Flatten(),
        ]
        self.body = nn.Sequential(*stages)
        self.project = nn.Linear(4 * width * _POOLED**2, FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    @property
    def early(self) -> nn.Module:
        """The last convolutions, pooled to 4x4: 4 * width channels."""
        return self.body[5]

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits and 64 features, smooth, not rectified; see `SavedClassifier`."""
        self.check(images)
        features = F.silu(self.project(self.body(images)))
        logits: Tensor = self.head(F.dropout(features, self.dropout, self.training))
        return logits, features


def load_classifier(
    path: str | os.PathLike[str], class_names: Sequence[str] = ()
) -> SmallClassifier | ResNetClassifier:
    """Load the folder of a `SmallClassifier` or a ResNet-34, or a file of another's classifier.

    A file holds the state dict of torchvision's resnet34, see `ResNetClassifier.published`; no code
    in it is run. The classes that are to be judged must be those it was trained on, see
    `check_classes` and `check_outputs`.

    Raises:
        PeckerError: nothing is there, it is none of these, or it was trained on other classes.
    """
    path = Path(path)
    if path.is_dir():
        check_classes(path, class_names)
        arch = read_config(path, SmallClassifier.__name__).get("arch")
        return SmallClassifier.load(path) if arch is None else ResNetClassifier.load(path)
    if not path.is_file():
        raise PeckerError(f"classifier {path}: no such file or folder; give {ACCEPTED}")
    judge = ResNetClassifier.published(published_weights(path), f"classifier {path}")
    check_outputs(path, judge.num_classes, class_names)
    return judge


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    groups = math.gcd(8, out_channels)
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1),
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
        ]
    return nn.Sequential(*layers)
