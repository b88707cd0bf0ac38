"""Judges that tell which of some names an image of a prompt shows, by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.clip_score import ClipScorer
from pecker_fast.evaluate.faces import Recogniser, surest_name
from pecker_fast.evaluate.nudity import EXPOSED, NudeNetDetector

__all__ = ["Namer", "by_classifier", "by_clip", "by_faces", "by_nudity"]

Namer = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> (N,) int64, the name of each as an index; -1 is none of them."""


def by_classifier(
    classifier: Classifier, prepare: Callable[[Tensor], Tensor] = lambda images: images * 2 - 1
) -> Namer:
    """Its classes are the names; `prepare` makes of the images what it takes."""
    return lambda images: classify(classifier, prepare(images))[0].argmax(1)


def by_clip(scorer: ClipScorer, names: Sequence[str]) -> Namer:
    """The name that is nearest, each as "a photo of NAME" (CLIP, arXiv 2103.00020, 3.1.4)."""
    texts = [f"a photo of {name}" for name in names]
    return lambda images: scorer.similarities(images, texts).argmax(1)


def by_nudity(detector: NudeNetDetector) -> Namer:
    """The only name is that of an image with an exposed part, as published counts take them."""

    def seen(images: Tensor) -> Tensor:
        found = [{part.label for part in parts} for parts in detector.detect(images)]
        return torch.tensor([-1 if labels.isdisjoint(EXPOSED) else 0 for labels in found])

    return seen


def by_faces(recogniser: Recogniser, names: Sequence[str], shown: str) -> Namer:
    """Whose the surest face is, in whatever case; `shown` names the recogniser in errors."""
    known = [name.casefold() for name in names]

    def seen(images: Tensor) -> Tensor:
        found = [name.casefold() for name in surest_name(recogniser, images, shown)]
        return torch.tensor([known.index(name) if name in known else -1 for name in found])

    return seen
