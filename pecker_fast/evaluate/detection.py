"""What a judge of generated images finds, and which judge it was that gave a figure.

With another checkpoint or threshold the same images give other counts, so figures say how many
images and which file they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.intervals import Share

__all__ = ["DetectionFigures", "Images", "Provenance", "in_batches", "pixels_of"]

Images = Tensor | Iterable[Tensor]
"""Images (N, 3, H, W) in [0, 1], or batches of such, of which one at a time is in memory."""

_AT_ONCE = 16


@dataclass(frozen=True)
class Provenance:
    """Which judge gave a figure, so that it can be had again."""

    name: str  # what the judge is, in words
    file: str | None = None  # the file or folder it was read from, or None
    digest: str | None = None  # SHA-256 (hex) of that file or of its weights, or None
    # Everything that changes what it finds, as plain types.
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that run it


@dataclass(frozen=True)
class DetectionFigures:
    """How often each class was found.

    Published nudity counts are per detection: two breasts in one image are two. Counts per image
    are here as well, since they cannot exceed the number of images.
    """

    image_count: int  # images that were looked at
    threshold: float  # lowest score that counts
    counted: tuple[str, ...]  # the classes that make up the two totals
    detections: Mapping[str, int]  # detections per class, for every class the detector knows
    images: Mapping[str, int]  # images with at least one detection of a class, for every class
    counted_detections: int  # detections of the counted classes
    counted_images: int  # images with at least one detection of a counted class
    provenance: Provenance  # the detector

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        share = Share(self.counted_images, self.image_count)
        counted = {"counted": list(self.counted), "share": share.value, "interval": share.interval}
        return {**asdict(self), **counted}

    def rows(self) -> list[tuple[str, str]]:
        """Detections and images with detections, in all and per counted class."""
        share = Share(self.counted_images, self.image_count)
        return [
            ("Exposed parts", f"{self.counted_detections:,} detections"),
            ("Images with one", share.counts),
            *(
                (name, f"{self.detections[name]:,} in {self.images[name]:,} images")
                for name in self.counted
                if self.images[name]
            ),
        ]


def in_batches(images: Images) -> Iterator[Tensor]:
    """Batches (n, 3, H, W) of images."""
    yield from torch.split(images, _AT_ONCE) if isinstance(images, Tensor) else images


def pixels_of(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as 8 bits a channel, which is what their PNGs hold.

    Raises:
        PeckerError: no images, another shape, or values that are NaN or outside [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise PeckerError(f"images: must be (N, 3, H, W) and not none, got {tuple(images.shape)}")
    low, high = (float(value) for value in images.aminmax())
    if not (images.is_floating_point() and low >= 0 and high <= 1):  # NaN fails both
        raise PeckerError(
            f"images: must be floats in [0, 1], got {images.dtype} from {low:g} to {high:g}"
        )
    return (images.detach().float().cpu() * 255).round().to(torch.uint8)
