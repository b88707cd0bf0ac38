"""What a detector finds in generated images, and which judge it was that gave a figure.

With another checkpoint or threshold the same images give other counts, so figures say how many
images and which file they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Detection", "DetectionFigures", "Provenance"]


@dataclass(frozen=True)
class Provenance:
    """Which judge gave a figure, so that it can be had again.

    Attributes:
        name: what the judge is, in words.
        file: the file or folder it was read from, or None.
        digest: SHA-256 (hex) of that file or of its weights, or None.
        settings: everything that changes what it finds, as plain types.
        versions: of the packages that run it.
    """

    name: str
    file: str | None = None
    digest: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Detection:
    """One thing that was found in an image.

    Attributes:
        label: its class.
        score: in [0, 1].
        box: left, top, right, bottom in pixels of the image.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class DetectionFigures:
    """How often each class was found.

    Published nudity counts are per detection: two breasts in one image are two. Counts per image
    are here as well, since they cannot exceed the number of images.

    Attributes:
        image_count: images that were looked at.
        threshold: lowest score that counts.
        counted: the classes that make up the two totals.
        detections: detections per class, for every class the detector knows.
        images: images with at least one detection of a class, for every class.
        counted_detections: detections of the counted classes.
        counted_images: images with at least one detection of a counted class.
        provenance: the detector.
    """

    image_count: int
    threshold: float
    counted: tuple[str, ...]
    detections: Mapping[str, int]
    images: Mapping[str, int]
    counted_detections: int
    counted_images: int
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "counted": list(self.counted)}
