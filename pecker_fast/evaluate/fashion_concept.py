"""Judging an erasure from the shipped text-to-image pipeline: captions to ask for, images to judge.

The classifier is the one of the shipped teacher; captions are those of `datasets.fashion_captions`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES
from pecker_fast.evaluate.concept import ConceptCaptions

__all__ = ["fashion_concept", "fashion_images", "fashion_probe", "neighbours_of"]

# What a classifier, too, confuses most: clothes for the upper half, shoes. Trousers, dresses and
# bags are like nothing else.
_KINDS = ((0, 2, 4, 6), (5, 7, 9))


def neighbours_of(forget: int) -> tuple[int, ...]:
    """Classes that are like this one."""
    kind = next((kind for kind in _KINDS if forget in kind), ())
    return tuple(label for label in kind if label != forget)


def fashion_concept(
    forget: int,
    override: int | None,
    per_class: int,
    seed: int = 0,
    told: Sequence[str] | None = None,
    of_concept: int | None = None,
) -> ConceptCaptions:
    """Captions for every class, drawn from those the pipeline learnt and those held back.

    Args:
        forget: the class that the concept is.
        override: the class in its place, or None.
        per_class: captions of each class to keep, half of them held back from the training of
            the pipeline.
        seed: which ones.
        told: the prompts that the erasure is told to forget. None: any caption that the pipeline
            learnt for the class.
        of_concept: captions of the concept that were told, and as many that were held back. None:
            `per_class`.
    """
    near, held_back = neighbours_of(forget), per_class // 2
    kept: dict[str, list[tuple[str, int]]] = {"neighbours": [], "others": []}
    for label in (*near, *(k for k in range(len(CLASS_NAMES)) if k not in (forget, *near))):
        kept["neighbours" if label in near else "others"] += [
            *_drawn(named_captions(label), label, per_class - held_back, seed),
            *_drawn(held_back_captions(label), label, held_back, seed),
        ]
    of_concept = of_concept or per_class
    groups = {
        "forget_trained": _drawn(told or named_captions(forget), forget, of_concept, seed),
        "forget_held_back": _drawn(held_back_captions(forget), forget, of_concept, seed),
        **kept,
    }
    return ConceptCaptions(tuple(CLASS_NAMES), forget, override, groups)


def fashion_probe(forget: int, told: Sequence[str], images: int, seed: int = 0) -> ConceptCaptions:
    """Captions to end a run by: none that is held back, so that those tell something new after it.

    `images` of them are of the prompts that the erasure is told to forget, and as many of all other
    classes together.
    """
    kept = [label for label in range(len(CLASS_NAMES)) if label != forget]
    each = -(-images // len(kept))
    groups = {
        "forget": _drawn(told, forget, images, seed),
        "keep": [pair for k in kept for pair in _drawn(named_captions(k), k, each, seed)],
    }
    return ConceptCaptions(tuple(CLASS_NAMES), forget, None, groups)


def _drawn(captions: Sequence[str], label: int, count: int, seed: int) -> list[tuple[str, int]]:
    """So many of the captions in random order; where there are too few, they take turns."""
    order = np.random.default_rng((seed, label)).permutation(len(captions))
    return [(captions[order[index % len(captions)]], label) for index in range(count)]


def fashion_images(images: Tensor) -> Tensor:
    """The pipeline's images (N, 3, 32, 32) in [0, 1] as the classifier takes them.

    Returns:
        (N, 1, 28, 28) in [-1, 1]: grey, without the border of two pixels that the pipeline draws.
    """
    return images.mean(1, keepdim=True)[..., 2:-2, 2:-2] * 2 - 1
