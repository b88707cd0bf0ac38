"""Detectors in NudeNet's format: what is fed in, what is read out, counts, refusals."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from nudity_files import (
    BELLY,
    BREAST,
    FACE,
    NAMES,
    SIZE,
    anchors,
    boxes,
    hide_shape,
    image,
    write_file,
)

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.nudity import EXPOSED, LABELS, NudeNetDetector


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (32, 32, (6, 4, 14, 8)),
        (64, 20, (12, 8, 28, 16)),  # 64 pixels on 32: twice
        (10, 40, (7.5, 5, 10, 10)),  # 40 on 32: 1.25 times; right would be 17.5, the width is 10
        (16, 4, (3, 2, 7, 4)),  # 16 on 32: half
    ],
)
def test_boxes_are_mapped_back_to_the_image(detector, width, height, box):
    judge = detector((10, 6, 8, 4, BREAST, 0.5))  # left 6, top 4, right 14, bottom 8 of the input
    (found,) = judge.detect(image(width, height))[0]
    assert found == ("FEMALE_BREAST_EXPOSED", 0.5, box)


def test_boxes_in_the_padding_are_no_detections(detector):
    # Input rows 16 to 31 are padding for an image of 32 x 16; the second box reaches out of it.
    judge = detector((8, 24, 8, 8, BREAST, 0.9), (8, 14, 8, 8, BREAST, 0.8))
    assert boxes(judge.detect(image(32, 16))[0]) == [(4, 10, 12, 16)]
    assert len(judge.detect(image(32, 32))[0]) == 2


def test_padding_is_black_on_the_right_and_below(detector):
    spots = [(0, 0), (15, 15), (0, 16), (15, 31), (16, 0), (31, 15), (16, 16), (31, 31)]
    # The score of an anchor is the pixel of its spot: 1 for white, 0 for padding. Boxes are inside.
    entries = [(2 * i + 0.5, 2, 1, 1, BREAST, 0) for i in range(len(spots))]
    probes = [(4 + BREAST, i, 0, y, x) for i, (y, x) in enumerate(spots)]
    judge = detector(*entries, probes=probes)

    def white(width, height):
        scale = max(width, height) / SIZE
        found = boxes(judge.detect(image(width, height))[0])
        return {spots[int(left / (2 * scale))] for left, *_ in found}

    assert white(64, 64) == set(spots)
    assert white(64, 32) == set(spots[:4])
    assert white(32, 64) == {(0, 0), (15, 15), (16, 0), (31, 15)}


@pytest.mark.parametrize(("order", "scores"), [("rgb", (1, 0.2, 0.6)), ("bgr", (0.6, 0.2, 1))])
def test_channels_are_red_green_blue_unless_asked_otherwise(detector, order, scores):
    entries = [(4, 4, 2, 2, BREAST, 0), (12, 4, 2, 2, FACE, 0), (20, 4, 2, 2, BELLY, 0)]
    probes = [(4 + k, i, i, 3, 5) for i, k in enumerate((BREAST, FACE, BELLY))]
    judge = detector(*entries, probes=probes, threshold=0.1, channel_order=order)
    found = {d.label: d.score for d in judge.detect(image(32, 32, (255, 51, 153)))[0]}
    expected = dict(zip((LABELS[BREAST], LABELS[FACE], LABELS[BELLY]), scores, strict=True))
    # n / 255 in float32, at most 6e-8 from the fraction.
    assert found == pytest.approx(expected, rel=1e-7)
    assert judge.provenance().settings["channel_order"] == order


def test_images_are_resized_bilinearly_and_seen_with_8_bits(detector):
    """Twice as large an image: each input pixel is the mean of 2 x 2."""
    picture = image(64, 64, "black")
    for x, y, level in ((10, 20, 255), (11, 20, 51.4), (10, 21, 101.6)):
        picture[..., y, x] = level / 255
    judge = detector((4, 4, 2, 2, BREAST, 0), probes=[(4 + BREAST, 0, 0, 10, 5)])
    # The mean of 1, .2, .4 and 0, to a few units of float32.
    assert judge.detect(picture)[0][0].score == pytest.approx(0.4, rel=1e-6)


def test_the_best_class_of_an_anchor_is_the_only_one(tmp_path):
    output = anchors((8, 8, 4, 4, BREAST, 0.5))
    output[4 + BELLY], output[4 + FACE] = 0.75, 0.4
    (found,) = NudeNetDetector(write_file(tmp_path / "d.onnx", output)).detect(image(32, 32))
    assert [(d.label, d.score) for d in found] == [("BELLY_EXPOSED", 0.75)]


@pytest.mark.parametrize(("threshold", "count"), [(0.25, 1), (0.7, 0), (0.3, 1), (0.5, 1)])
def test_scores_of_exactly_the_threshold_count(detector, threshold, count):
    # 0.7 in float32 is a little less than 0.7, 0.3 a little more.
    judge = detector((8, 8, 4, 4, BREAST, threshold), threshold=threshold)
    assert len(judge.detect(image(32, 32))[0]) == count


def test_overlapping_boxes_are_suppressed_whatever_their_class(detector):
    judge = detector(
        (8, 8, 8, 8, BREAST, 0.5),
        (8, 8, 8, 6, FACE, 0.9),  # intersection 48, union 64: .75
        (8, 20, 8, 8, BELLY, 0.4),
        (8, 24, 8, 8, BELLY, 0.3),  # intersection 32, union 96: 1/3
    )
    assert [(d.label, d.box) for d in judge.detect(image(32, 32))[0]] == [
        ("FACE_FEMALE", (4, 5, 12, 11)),
        ("BELLY_EXPOSED", (4, 16, 12, 24)),
        ("BELLY_EXPOSED", (4, 20, 12, 28)),
    ]


@pytest.mark.parametrize("count", ["batch", 1])
def test_files_for_one_image_and_for_any_number(detector, count):
    judge = detector(
        (4, 4, 2, 2, BREAST, 0), probes=[(4 + BREAST, 0, 0, 3, 5)], file={"count": count}
    )
    colors = ["white", "black", "red", "blue"] * 5
    found = judge.detect(torch.cat([image(32, 32, color) for color in colors]))
    assert [len(part) for part in found] == [1, 0, 1, 0] * 5


def test_the_files_own_input_size_counts(detector):
    free = {"free_size": True}
    judge = detector((10, 6, 8, 4, BREAST, 0.5), file={**free, "imgsz": "[32, 32]"})
    assert judge.input_size == 32
    assert boxes(judge.detect(image(64, 64))[0]) == [(12, 8, 28, 16)]
    assert detector(file={"imgsz": "[64, 64]"}).input_size == 32  # the graph has the last word
    with pytest.raises(PeckerError, match=r"d\.onnx"):
        detector(file={**free, "imgsz": "?"})


def test_the_files_own_order_of_classes_counts(detector):
    order = list(LABELS)
    order[0], order[1] = order[1], order[0]
    for names, expected in ((NAMES, LABELS[0]), (str(dict(enumerate(order))), LABELS[1])):
        judge = detector((8, 8, 4, 4, 0, 0.5), file={"names": names})
        assert judge.detect(image(32, 32))[0][0].label == expected


def test_figures_by_hand_with_their_provenance(detector, tmp_path):
    # The first anchor is found in bright images only, the second always, the third is a face.
    judge = detector(
        (4, 4, 2, 2, BREAST, 0),
        (12, 4, 2, 2, BELLY, 0.6),
        (20, 4, 2, 2, FACE, 0.9),
        probes=[(4 + BREAST, 0, 0, 3, 5)],
    )
    pictures = [image(32, 32, color) for color in ("white", "black", "red")]
    figures = judge.measure(torch.cat(pictures * 6))
    assert figures.image_count == 18  # more than go in at once
    assert len(EXPOSED) == 9 and figures.counted == EXPOSED
    assert tuple(figures.detections) == LABELS
    expected = {"FACE_FEMALE": 18, "FEMALE_BREAST_EXPOSED": 12, "BELLY_EXPOSED": 18}
    assert {k: v for k, v in figures.detections.items() if v} == expected
    assert (figures.counted_detections, figures.counted_images) == (30, 18)

    provenance = json.loads(json.dumps(figures.to_dict()))["provenance"]
    assert provenance["digest"] == hashlib.sha256((tmp_path / "d.onnx").read_bytes()).hexdigest()
    assert provenance["file"] == str(tmp_path / "d.onnx")
    assert provenance["versions"] == {"onnxruntime": sys.modules["onnxruntime"].__version__}
    assert provenance["settings"] == {
        "threshold": 0.25, "iou_threshold": 0.45, "channel_order": "rgb", "input_size": 32,
        "providers": ["CPUExecutionProvider"],
    }  # fmt: skip


# ---- what is refused


@pytest.mark.parametrize(
    ("rows", "file"),
    [
        (84, {}),
        (20, {}),
        (22, {"names": "{0: 'person', 1: 'cat'}"}),
        (22, {"names": NAMES.replace("FACE_MALE", "HAT")}),
        (22, {"names": "person, cat"}),
        (22, {"dtype": np.float64}),
    ],
)
def test_other_models(tmp_path, rows, file):
    path = write_file(tmp_path / "d.onnx", np.zeros((rows, 1), dtype=np.float32), **file)
    with pytest.raises(PeckerError, match=r"d\.onnx"):
        NudeNetDetector(path)


def test_a_transposed_output_even_where_the_graph_does_not_say(tmp_path):
    path = write_file(tmp_path / "d.onnx", np.zeros((30, 22), dtype=np.float32))
    hide_shape(path, [1, 30, 22])
    with pytest.raises(PeckerError, match=r"\(1, 30, 22\)"):
        NudeNetDetector(path)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1.5, -0.5])
def test_scores_that_are_none_do_not_pass_for_no_nudity(detector, score):
    with pytest.raises(PeckerError, match=r"d\.onnx"):
        detector((8, 8, 4, 4, BREAST, score))
    probes = [(4 + BREAST, 0, 0, 3, 5)]  # 1 more for a white image than for the one it is tried on
    judge = detector((8, 8, 4, 4, BREAST, 0.5), probes=probes)
    with pytest.raises(PeckerError, match=r"d\.onnx"):
        judge.detect(image(32, 32))


@pytest.mark.parametrize("value", [1.5, torch.nan])
def test_images_of_a_run_that_diverged(detector, value):
    with pytest.raises(PeckerError, match="images: must be"):
        detector().detect(torch.full((1, 3, 8, 8), value))
