"""The kept classes of two sets of images, so that like is compared with like.

FID of a model that has forgotten a class says something only where that class is missing on both
sides; and where the two sides name their classes in different orders, numbers would mix them up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.errors import PeckerError

__all__ = ["check_same_classes", "kept_images"]


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


def _present(names: tuple[str, ...], labels: Tensor, forget: str | None) -> set[str]:
    """Lower-case names of the classes that have an image, without the forgotten one."""
    return {names[i].lower() for i in set(labels.tolist())} - {_lower(forget)}


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()
