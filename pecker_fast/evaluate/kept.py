"""The kept classes of two sets of images, so that like is compared with like.

FID of a model that has forgotten a class says something only where that class is missing on both
sides; and where the two sides name their classes in different orders, numbers would mix them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pecker_fast.datasets.image_files import ImageFiles
from pecker_fast.datasets.loading import ImageSet, with_classes
from pecker_fast.errors import PeckerError

__all__ = ["Images", "check_comparable", "kept_images"]

Images: TypeAlias = ImageSet | ImageFiles


def kept_images(images: Images, forget: str | None) -> Tensor:
    """The images (N, C, H, W) of all classes but one, which may be missing; None keeps all.

    Raises:
        PeckerError: no image is left.
    """
    images = with_classes(images)
    kept = [i for i, name in enumerate(images.class_names) if name.lower() != _lower(forget)]
    chosen = torch.isin(images.labels, torch.tensor(kept))
    if not bool(chosen.any()):
        raise PeckerError(f"{images.source}: holds no image of a class other than {forget!r}")
    return images.images[chosen]


def check_comparable(
    shape: Sequence[int],
    names: Sequence[str],
    labels: Tensor | None,
    source: str,
    real: Images,
    forget: str | None,
) -> None:
    """Compare size and kept classes of generated and real images, the classes by name.

    Args:
        shape: (C, H, W) of a generated image.
        names: of the generated images' classes.
        labels: (N,) of the generated images; None: they have no classes.
        source: what they are, in words.
        real: the real images.
        forget: name of the forgotten class, which may be there or not, on either side; None: all
            must agree, if both sides have classes.

    Raises:
        PeckerError: another size, or one side has a class that the other has not.
    """
    if real.images.shape[2:] != tuple(shape[1:]):
        theirs, ours = (f"{h}x{w}" for h, w in (real.images.shape[2:], shape[1:]))
        raise PeckerError(
            f"real images: {real.source} holds {theirs} pixels, the images to judge have {ours}; "
            "FID between sizes measures the scaling: give real images of the same size"
        )
    if labels is None or (forget is None and real.labels is None):
        return
    real = with_classes(real)
    here, there = (
        {each[i].lower() for i in set(of.tolist())} - {_lower(forget)}
        for each, of in ((names, labels), (real.class_names, real.labels))
    )
    parts = [
        f"only {whose} has {', '.join(map(repr, found[:4]))}{' ...' if len(found) > 4 else ''}"
        for whose, found in ((source, sorted(here - there)), (real.source, sorted(there - here)))
        if found
    ]
    if parts:
        raise PeckerError(
            f"real images: not of the classes that are judged: {'; '.join(parts)}; give images of "
            "the same classes under the same names (a model's are class_names in its "
            "pecker_fast.json)"
        )


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()
