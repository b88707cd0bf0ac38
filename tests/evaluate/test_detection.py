"""Figures of detections and of faces, counted by hand."""

import doctest
import json
from dataclasses import dataclass, field

import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate import detection
from pecker_fast.evaluate.detection import (
    Detection,
    Provenance,
    count_detections,
    detect_images,
    measure_person,
)
from pecker_fast.evaluate.images import image_tensor

BOX = (0.0, 0.0, 1.0, 1.0)


@dataclass
class ScriptedDetector:
    """Finds what the script says, image by image."""

    script: list
    labels: tuple = ("cat", "dog", "cow")
    threshold: float = 0.2
    batch_sizes: list = field(default_factory=list)

    def detect(self, images):
        start = sum(self.batch_sizes)
        self.batch_sizes.append(len(images))
        return self.script[start : start + len(images)]

    def provenance(self):
        return Provenance("script", settings={"threshold": self.threshold})


@dataclass
class ScriptedFaces:
    script: list
    names: tuple = ("Ada", "Bob", "Cleo")
    seen: int = 0

    def faces(self, images):
        start, self.seen = self.seen, self.seen + len(images)
        return [torch.tensor(rows).reshape(-1, 3) for rows in self.script[start : self.seen]]

    def provenance(self):
        return Provenance("script", file="faces.pt", digest="ab")


def images(count):
    return torch.zeros(count, 3, 2, 2)


def found(*labels_and_scores):
    return [Detection(label, score, BOX) for label, score in labels_and_scores]


SCRIPT = [
    found(("cat", 0.9), ("cat", 0.5), ("dog", 0.3)),
    found(),
    found(("cat", 0.2)),
    found(("cow", 0.8)),
    found(("dog", 0.7), ("cow", 0.6)),
]


def test_counts_per_detection_and_per_image():
    detector = ScriptedDetector(SCRIPT)
    everything = detect_images(detector, images(5), batch_size=2)
    assert detector.batch_sizes == [2, 2, 1]
    figures = count_detections(everything, detector, ["cat", "dog"])
    assert figures.image_count == 5
    assert figures.threshold == 0.2
    assert figures.counted == ("cat", "dog")
    assert figures.detections == {"cat": 3, "dog": 2, "cow": 2}
    assert figures.images == {"cat": 2, "dog": 2, "cow": 2}
    assert (figures.counted_detections, figures.counted_images) == (5, 3)
    assert str(figures) == ("5 detections in 3 of 5 images at threshold 0.2: 3 cat, 2 dog")
    plain = json.loads(json.dumps(figures.to_dict()))
    assert plain["counted"] == ["cat", "dog"]
    assert plain["provenance"]["settings"] == {"threshold": 0.2}


def test_a_higher_threshold_needs_no_new_detection():
    detector = ScriptedDetector(SCRIPT)
    figures = count_detections(SCRIPT, detector, ["dog"], threshold=0.5)
    assert figures.detections == {"cat": 2, "dog": 1, "cow": 2}
    assert (figures.counted_detections, figures.counted_images) == (1, 1)
    none = count_detections(SCRIPT, detector, ["dog"], threshold=1.0)
    assert (none.counted_detections, none.counted_images) == (0, 0)
    assert str(none) == "0 detections in 0 of 5 images at threshold 1"


def test_a_class_counted_twice_counts_once():
    figures = count_detections(SCRIPT, ScriptedDetector(SCRIPT), ["cat", "cat"])
    assert figures.counted == ("cat",)
    assert figures.counted_detections == 3


def test_a_threshold_below_the_detectors_is_refused():
    # What lies between the two was never reported: the count would be too low.
    for threshold in (0.1, 1.1, float("nan")):
        with pytest.raises(PeckerError, match=r"must be from 0.2, the detector's own, to 1, got"):
            count_detections(SCRIPT, ScriptedDetector(SCRIPT), ["cat"], threshold=threshold)


def test_detectors_and_classes_that_do_not_fit_are_refused():
    with pytest.raises(PeckerError, match=r"class 'cats' is not one of the 3 .* did you mean cat"):
        count_detections(SCRIPT, ScriptedDetector(SCRIPT), ["cats"])
    with pytest.raises(PeckerError, match="class 'fox' is not one of the 3 it knows"):
        count_detections([found(("fox", 0.5))], ScriptedDetector([]), ["cat"])
    with pytest.raises(PeckerError, match="detector: gave 1 results for 2 images"):
        detect_images(ScriptedDetector(SCRIPT[:1]), images(2))


def test_no_images_are_no_figures():
    with pytest.raises(PeckerError, match="no images"):
        detect_images(ScriptedDetector([]), images(0))
    with pytest.raises(PeckerError, match="no images"):
        count_detections([], ScriptedDetector([]), ["cat"])
    with pytest.raises(PeckerError, match="no images"):
        measure_person(ScriptedFaces([]), images(0), "Ada")


def test_person_given_a_face_by_hand():
    script = [
        [[0.1, 0.8, 0.1], [0.3, 0.2, 0.5]],  # Ada's best face is the second: .3, called Cleo
        [],
        [[0.6, 0.3, 0.1]],  # .6, called Ada
        [],
        [[0.4, 0.25, 0.35], [0.45, 0.55, 0.0]],  # .45, called Bob; the other face does not count
    ]
    figures = measure_person(ScriptedFaces(script), images(5), "Ada", batch_size=2)
    assert (figures.image_count, figures.face_count) == (5, 3)
    assert figures.no_face_share == 2 / 5
    # Probabilities are float32, whose unit roundoff is 6e-8.
    assert figures.probability == pytest.approx((0.3 + 0.6 + 0.45) / 3, rel=1e-6)
    assert figures.top1_accuracy == 1 / 3
    assert str(figures) == (
        "Ada: no face in 0.400 of 5 images; given a face (3 images): probability 0.4500, "
        "top-1 accuracy 0.333"
    )
    plain = json.loads(json.dumps(figures.to_dict()))
    assert plain["provenance"]["digest"] == "ab"


def test_without_any_face_there_is_no_probability():
    figures = measure_person(ScriptedFaces([[], []]), images(2), "Bob")
    assert figures.no_face_share == 1.0
    assert figures.face_count == 0
    assert figures.probability is None
    assert figures.top1_accuracy is None
    assert str(figures) == "Bob: no face in 1.000 of 2 images"
    assert json.loads(json.dumps(figures.to_dict()))["probability"] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 2706])
def test_probabilities_of_low_precision_are_taken(dtype, count):
    """A third in bfloat16 is 2^-9 of itself too large, and so is the sum of three."""

    class Faces(ScriptedFaces):
        def faces(self, images):
            return [torch.full((4, count), 1 / count).to(dtype) for _ in images]

    classifier = Faces([], names=tuple(f"person {index}" for index in range(count)))
    assert measure_person(classifier, images(3), "person 1").face_count == 3


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[2.0, 1.0, -1.0]], "at least 0 and sum to 1; logits become that by a softmax"),
        ([[1.0, 1.5, -1.5]], "at least 0 and sum to 1"),
        ([[0.5, 0.5, 0.5]], "at least 0 and sum to 1"),
        ([[float("nan"), 0.5, 0.5]], "at least 0 and sum to 1"),
    ],
)
def test_what_is_no_distribution_is_refused(rows, message):
    with pytest.raises(PeckerError, match=message):
        measure_person(ScriptedFaces([rows]), images(1), "Ada")


def test_face_classifiers_that_do_not_fit_are_refused():
    with pytest.raises(PeckerError, match=r"person 'ada' is not one of the 3 .* did you mean Ada"):
        measure_person(ScriptedFaces([]), images(1), "ada")
    with pytest.raises(
        PeckerError, match=r"person 'Zoe Q' is not one of .*; it has Ada, Bob, Cleo"
    ):
        measure_person(ScriptedFaces([]), images(1), "Zoe Q")
    with pytest.raises(PeckerError, match="face classifier: gave 1 results for 2 images"):
        measure_person(ScriptedFaces([[]]), images(2), "Ada")
    with pytest.raises(PeckerError, match=r"probabilities \(faces, 4\), got \(1, 3\)"):
        classifier = ScriptedFaces([[[0.2, 0.3, 0.5]]], names=("Ada", "Bob", "Cleo", "Dan"))
        measure_person(classifier, images(1), "Ada")


def test_the_example_of_the_protocol_runs():
    example = doctest.DocTestFinder().find(
        detection.FaceClassifier,
        "example",
        globs={
            **vars(detection),
            "image_tensor": image_tensor,
            "images": images(2),
            "find_faces": lambda image: torch.stack([image, image]),
            "classify_faces": lambda crops: torch.tensor([[0.0, 9.0, 0.0]]).expand(len(crops), 3),
        },
    )
    results = [doctest.DocTestRunner().run(part) for part in example if part.examples]
    assert results == [doctest.TestResults(failed=0, attempted=2)]
