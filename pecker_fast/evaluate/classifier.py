"""Classifiers that judge generated images: a small one, a ResNet-34 (also published), or another.

Every classifier maps images (N, C, H, W) in [-1, 1], float32, to logits (N, num_classes) and to
features (N, F) for the Fréchet distance. See `Classifier` for the contract.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import (
    ACCEPTED,
    SavedClassifier,
    check_classes,
    check_outputs,
    check_sizes,
    is_torchscript,
    published_weights,
    read_config,
)
from pecker_fast.evaluate.defaults import TRUSTED
from pecker_fast.evaluate.resnet import ResNetClassifier

__all__ = ["Classifier", "ScriptedClassifier", "SmallClassifier", "load_classifier"]

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


class ScriptedClassifier(nn.Module):
    """A user's TorchScript file that returns logits, or (logits, features).

    Where it returns logits only, the logits serve as features.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [-1, 1] to logits (N, num_classes)."""
        return self.logits_and_features(images)[0]

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to (logits, features).

        Raises:
            PeckerError: the script fails on these images or returns something else.
        """
        try:
            output = self.script(images)
        except RuntimeError as error:
            raise PeckerError(
                f"classifier: the TorchScript file fails on images {tuple(images.shape)} "
                f"({str(error).strip().splitlines()[-1]}); it must take float32 images "
                "(N, C, H, W) in [-1, 1] of the model's size"
            ) from error
        both = output if isinstance(output, tuple) else (output, output)
        if len(both) != 2:
            raise PeckerError(
                "classifier: the TorchScript file must return logits (N, classes) or a tuple "
                f"(logits, features (N, F)); got a tuple of {len(both)}"
            )
        logits, features = both
        for name, value in (("logits", logits), ("features", features)):
            if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != len(images):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise PeckerError(
                    f"classifier: the TorchScript file must return logits (N, classes) or a "
                    f"tuple (logits, features (N, F)); got {name} {found} for N={len(images)}"
                )
        return logits.float(), features.float()


def load_classifier(
    path: str | os.PathLike[str], class_names: Sequence[str] = ()
) -> SmallClassifier | ResNetClassifier | ScriptedClassifier:
    """Load the folder of a `SmallClassifier` or a ResNet-34, or a file of another's classifier.

    A file holds the state dict of torchvision's resnet34, see `ResNetClassifier.published`; no code
    in it is run. The code in a TorchScript file is run, and may do what this process may, so such a
    file must be named as `trusted:FILE`; it returns logits, or (logits, features). The classes that
    are to be judged must be those it was trained on, see `check_classes` and `check_outputs`.

    Raises:
        PeckerError: nothing is there, it is none of these, or it was trained on other classes.
    """
    trusted = str(path).startswith(TRUSTED)
    path = Path(str(path).removeprefix(TRUSTED))
    if path.is_dir():
        check_classes(path, class_names)
        arch = read_config(path, SmallClassifier.__name__).get("arch")
        return SmallClassifier.load(path) if arch is None else ResNetClassifier.load(path)
    if not path.is_file():
        raise PeckerError(f"classifier {path}: no such file or folder; give {ACCEPTED}")
    if not is_torchscript(path):
        judge = ResNetClassifier.published(published_weights(path), f"classifier {path}")
        check_outputs(path, judge.num_classes, class_names)
        return judge
    if not trusted:
        raise PeckerError(
            f"classifier {path}: a TorchScript file, whose code can read and write your files; if "
            f"you trust who made it, name it as {TRUSTED}{path}"
        )
    try:
        with warnings.catch_warnings():  # torch deprecates TorchScript; users' files remain
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise PeckerError(
            f"classifier {path}: a TorchScript file that cannot be read; export it again with "
            "torch.jit.trace(model.eval(), images).save(path)"
        ) from error
    return ScriptedClassifier(script.eval())


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
