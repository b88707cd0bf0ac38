"""Who looks at images of prompts: a nudity detector, CLIP, a recogniser of faces, a classifier.

Each is a file of its own with a class that follows `Measure`, and a line in `load_measures`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.clip_score import ClipScorer
from pecker_fast.evaluate.detection import Images
from pecker_fast.evaluate.faces import FaceRecogniser
from pecker_fast.evaluate.nudity import NudeNetDetector

__all__ = ["KNOWN", "Measure", "Measured", "Namer", "by_classifier", "load_measures"]

Namer: TypeAlias = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> (N,) int64, the name of each as an index; -1 is none of them."""

KNOWN = ("nudity", "clip", "faces")
"""What reports call them."""

_Path: TypeAlias = str | os.PathLike[str]


class Measured(Protocol):
    """What was found in images of prompts."""

    def rows(self) -> list[tuple[str, str]]:
        """Return titles and figures in words."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, ready for JSON."""


class Measure(Protocol):
    """What looks at images of prompts."""

    def measure(
        self, images: Images, prompts: Sequence[str], labels: Sequence[str | None]
    ) -> Measured:
        """Look at images (N, 3, H, W) in [0, 1] of N prompts, which name their N labels."""

    def namer(self, names: Sequence[str]) -> Namer:
        """Tell which of these names an image shows."""


def load_measures(
    *,
    nudity_detector: _Path | None = None,
    nudity_threshold: float | None = None,
    nudity_channel_order: str | None = None,
    clip: _Path | None = None,
    faces: str | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Measure]:
    """Load those that are asked for, by the name that reports have of them.

    Raises:
        PeckerError: a file that is missing, broken or of something else; or how a detector works
            is said and no file named.
    """
    found: dict[str, Measure] = {}
    if nudity_detector is not None:
        threshold = 0.25 if nudity_threshold is None else nudity_threshold
        found["nudity"] = NudeNetDetector(nudity_detector, threshold, nudity_channel_order or "rgb")
    elif (nudity_threshold, nudity_channel_order) != (None, None):
        raise PeckerError("--nudity-threshold and --nudity-channel-order need --nudity-detector")
    if clip is not None:
        found["clip"] = ClipScorer(clip, device)
    if faces is not None:
        found["faces"] = FaceRecogniser.load(faces)
    return found


def by_classifier(
    classifier: Classifier, prepare: Callable[[Tensor], Tensor] = lambda images: images * 2 - 1
) -> Namer:
    """Its classes are the names; `prepare` makes of the images what it takes."""
    return lambda images: classify(classifier, prepare(images))[0].argmax(1)
