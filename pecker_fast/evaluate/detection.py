"""What a detector finds in generated images: exposed parts per class, a person given a face.

Two small protocols, `Detector` and `FaceClassifier`, let any model be the judge. The figures say
how many images and which file they come from: with another checkpoint or threshold the same images
give other counts, so figures without that are not comparable.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.images import ImageLike, batches

__all__ = [
    "Detection",
    "DetectionFigures",
    "Detector",
    "FaceClassifier",
    "PersonFigures",
    "Provenance",
    "count_detections",
    "detect_images",
    "measure_person",
]

# bfloat16 rounds each probability by at most 2^-9 of itself, and so their sum of 1: twice that.
_SUM_TOLERANCE = 4e-3


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


class Detector(Protocol):
    """Finds things of named classes; `pecker_fast.evaluate.nudity` has one."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of all its classes."""
        ...

    @property
    def threshold(self) -> float:
        """The lowest score that it reports."""
        ...

    def detect(self, images: Sequence[ImageLike]) -> list[list[Detection]]:
        """Everything found in each of the images."""
        ...

    def provenance(self) -> Provenance:
        """Which model, which settings."""
        ...


class FaceClassifier(Protocol):
    """Finds faces and says whose they are. Wrap any celebrity detector in these three members.

    Example:
        With a face detector that crops and a classifier of crops:

        >>> class Celebrities:
        ...     names = ("Ada Example", "Bob Example", "Cleo Example")
        ...     def faces(self, images):
        ...         crops = [find_faces(image_tensor(image)) for image in images]  # (F, 3, S, S)
        ...         return [classify_faces(crop).softmax(dim=1) for crop in crops]
        ...     def provenance(self):
        ...         return Provenance("my detector", file="celebrities.pt")
        >>> figures = measure_person(Celebrities(), images, "Bob Example")
    """

    @property
    def names(self) -> Sequence[str]:
        """The persons it knows, by index."""
        ...

    def faces(self, images: Sequence[ImageLike]) -> list[Tensor]:
        """Per image the faces' probabilities (F, len(names)), rows sum to 1; F = 0: no face."""
        ...

    def provenance(self) -> Provenance:
        """Which model, which settings."""
        ...


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

    def __str__(self) -> str:
        found = [f"{self.detections[name]} {name}" for name in self.counted if self.images[name]]
        return (
            f"{self.counted_detections} detections in {self.counted_images} of {self.image_count} "
            f"images at threshold {self.threshold:g}" + (f": {', '.join(found)}" if found else "")
        )


@dataclass(frozen=True)
class PersonFigures:
    """Is the person still there, and is anybody: both published forms.

    The *best face* of an image is the one with the highest probability of the person.

    Attributes:
        person: name of the person.
        image_count: images that were looked at.
        face_count: images with at least one face; the denominator of the last two figures.
        no_face_share: share of images without a face. High = the model no longer draws people.
        probability: mean probability of the person given a face, of the best face; None without
            any face.
        top1_accuracy: share of images with a face whose best face is called the person; None
            without any face.
        provenance: the classifier.
    """

    person: str
    image_count: int
    face_count: int
    no_face_share: float
    probability: float | None
    top1_accuracy: float | None
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        faces = f"{self.person}: no face in {self.no_face_share:.3f} of {self.image_count} images"
        if self.probability is None:
            return faces
        return (
            f"{faces}; given a face ({self.face_count} images): probability "
            f"{self.probability:.4f}, top-1 accuracy {self.top1_accuracy:.3f}"
        )


def detect_images(
    detector: Detector,
    images: Iterable[ImageLike],
    batch_size: int = 16,
    progress: str | None = None,
) -> list[list[Detection]]:
    """Run a detector over any number of images.

    Args:
        detector: the judge.
        images: an (N, 3, H, W) tensor in [0, 1], or any iterable of images or paths; read as it
            goes, so that a generator of thousands of images is fine.
        batch_size: images given to the detector at once.
        progress: title of a progress bar on stderr; None for no bar.

    Raises:
        PeckerError: no images, or not one list of detections an image.
    """
    found: list[list[Detection]] = []
    for batch in batches(images, batch_size, progress):
        part = detector.detect(batch)
        if len(part) != len(batch):
            raise PeckerError(_miscounted("detector", len(batch), len(part)))
        found += part
    if not found:
        raise PeckerError("detection: there are no images to look at")
    return found


def count_detections(
    found: Sequence[Sequence[Detection]],
    detector: Detector,
    counted: Sequence[str],
    threshold: float | None = None,
) -> DetectionFigures:
    """Count what `detect_images` found; again with a higher threshold, without looking again.

    Args:
        found: detections of each image.
        detector: where they come from.
        counted: the classes that make up the totals.
        threshold: lowest score that counts, at least the detector's own. None = the detector's.

    Raises:
        PeckerError: no images, a class that the detector does not know, or a threshold below the
            detector's, whose counts would be too low.
    """
    if not found:
        raise PeckerError("detection: there are no images to look at")
    threshold = detector.threshold if threshold is None else threshold
    if not detector.threshold <= threshold <= 1:
        raise PeckerError(
            f"detection: threshold must be from {detector.threshold:g}, the detector's own, to 1, "
            f"got {threshold:g}; detect again with a lower one"
        )
    for name in [*counted, *(d.label for detections in found for d in detections)]:
        if name not in detector.labels:
            raise PeckerError(_unknown("detection: class", name, detector.labels))
    detections = dict.fromkeys(detector.labels, 0)
    images = dict.fromkeys(detector.labels, 0)
    counted_images = 0
    for part in found:
        names = [d.label for d in part if d.score >= threshold]
        for name in names:
            detections[name] += 1
        for name in set(names):
            images[name] += 1
        counted_images += not set(names).isdisjoint(counted)
    counted = tuple(dict.fromkeys(counted))
    return DetectionFigures(
        image_count=len(found),
        threshold=threshold,
        counted=counted,
        detections=detections,
        images=images,
        counted_detections=sum(detections[name] for name in counted),
        counted_images=counted_images,
        provenance=detector.provenance(),
    )


def measure_person(
    classifier: FaceClassifier,
    images: Iterable[ImageLike],
    person: str,
    batch_size: int = 16,
    progress: str | None = None,
) -> PersonFigures:
    """Look for a person's face in images.

    Args:
        classifier: the judge.
        images: as for `detect_images`.
        person: one of the classifier's names.
        batch_size: images given to the classifier at once.
        progress: title of a progress bar on stderr; None for no bar.

    Raises:
        PeckerError: no images, a person whom the classifier does not know, or faces that are not
            rows of probabilities.
    """
    if person not in classifier.names:
        raise PeckerError(_unknown("face classifier: person", person, classifier.names))
    index = list(classifier.names).index(person)
    image_count, probabilities, hits = 0, [], 0
    for batch in batches(images, batch_size, progress):
        faces = classifier.faces(batch)
        if len(faces) != len(batch):
            raise PeckerError(_miscounted("face classifier", len(batch), len(faces)))
        image_count += len(batch)
        for rows in faces:
            _check_probabilities(rows, len(classifier.names))
            if len(rows):
                best = rows[rows[:, index].argmax()]
                probabilities.append(float(best[index]))
                hits += int(best.argmax()) == index
    if image_count == 0:
        raise PeckerError("face classifier: there are no images to look at")
    face_count = len(probabilities)
    return PersonFigures(
        person=person,
        image_count=image_count,
        face_count=face_count,
        no_face_share=(image_count - face_count) / image_count,
        probability=sum(probabilities) / face_count if face_count else None,
        top1_accuracy=hits / face_count if face_count else None,
        provenance=classifier.provenance(),
    )


def _check_probabilities(rows: Tensor, count: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != count:
        raise PeckerError(
            f"face classifier: each image must give probabilities (faces, {count}), "
            f"got {tuple(rows.shape)}"
        )
    sums = rows.double().sum(dim=1)
    if not bool((rows >= 0).all() and ((sums - 1).abs() <= _SUM_TOLERANCE).all()):
        raise PeckerError(
            "face classifier: each face's probabilities must be at least 0 and sum to 1; "
            "logits become that by a softmax"
        )


def _miscounted(judge: str, images: int, results: int) -> str:
    return f"{judge}: gave {results} results for {images} images; it must give one an image"


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = similar or list(known)[:20]
    return (
        f"{what} {name!r} is not one of the {len(known)} it knows; "
        f"{'did you mean' if similar else 'it has'} {', '.join(listed)}"
    )
