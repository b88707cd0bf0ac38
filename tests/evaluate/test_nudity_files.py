"""Files and arguments that the NudeNet-format detector refuses."""

import sys

import numpy as np
import onnx
import pytest
from nudity_files import BREAST, NAMES, anchors, hide_shape, image, write_file
from onnx import TensorProto, helper

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.nudity import (
    NudeNetDetector,
)

OTHER = "another model or format: "


@pytest.mark.parametrize(
    "rows, file, message",
    [
        (84, {}, OTHER + r"its output is \['batch', 84, 1\], expected \(N, 22, anchors\)"),
        (20, {}, OTHER + r"its output is \['batch', 20, 1\]"),
        (
            22,
            {"names": "{0: 'person', 1: 'cat'}"},
            OTHER + r"it has 2 classes, \['person', 'cat'\]",
        ),
        (22, {"names": NAMES.replace("FACE_MALE", "HAT")}, r"18 classes, \['HAT'\] among them"),
        (22, {"names": "{1: 'FACE_MALE'}"}, OTHER + "its class names cannot be read"),
        (22, {"names": "person, cat"}, OTHER + "its class names cannot be read"),
        (22, {"dtype": np.float64}, OTHER + r"its input is tensor\(double\)"),
    ],
)
def test_other_models_are_refused(tmp_path, rows, file, message):
    path = write_file(tmp_path / "d.onnx", np.zeros((rows, 1), dtype=np.float32), **file)
    with pytest.raises(PeckerError, match=message):
        NudeNetDetector(path)


def test_a_file_of_nudenet_2_is_refused(tmp_path):
    """Its images come last-channel, its boxes, scores and labels apart."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "H", "W", 3])
    sink = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "H", "W", 3])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "2", [source], [sink])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "d.onnx")
    with pytest.raises(
        PeckerError, match=r"\['N', 'H', 'W', 3\], expected .*2.x detectors are not"
    ):
        NudeNetDetector(tmp_path / "d.onnx")


def test_a_transposed_output_is_refused_even_where_the_graph_does_not_say(tmp_path):
    path = write_file(tmp_path / "d.onnx", np.zeros((30, 22), dtype=np.float32))
    with pytest.raises(PeckerError, match=OTHER + r"its output is \['batch', 30, 22\]"):
        NudeNetDetector(path)
    hide_shape(path, [1, 30, 22])
    judge = NudeNetDetector(path)
    with pytest.raises(PeckerError, match=OTHER + r"its output is \(1, 30, 22\), expected \(1, 22"):
        judge.detect([image(32, 32)])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1.5, -0.5])
def test_scores_that_are_none_do_not_pass_for_no_nudity(detector, score):
    judge = detector((8, 8, 4, 4, BREAST, score))
    with pytest.raises(PeckerError, match=r"its scores are not all in \[0, 1\], or a box is NaN"):
        judge.detect([image(32, 32)])
    with pytest.raises(PeckerError, match="or a box is NaN"):
        detector((float("nan"), 8, 4, 4, BREAST, 0.5)).detect([image(32, 32)])


def test_what_is_no_file_of_onnx_is_refused(tmp_path):
    path = tmp_path / "d.onnx"
    with pytest.raises(PeckerError, match=r"NudeNet file .*d.onnx: no such file; name 320n.onnx"):
        NudeNetDetector(path)
    with pytest.raises(PeckerError, match="no such file"):
        NudeNetDetector(tmp_path)
    write_file(path, anchors((8, 8, 4, 4, BREAST, 0.5)))
    for content in (b"", b"<html>404</html>", path.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(PeckerError, match=r"not an ONNX file that onnxruntime .* can run") as e:
            NudeNetDetector(path)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\], got 0.0"),
        ({"threshold": float("nan")}, r"threshold must be in \(0, 1\], got nan"),
        ({"iou_threshold": 1.2}, r"iou_threshold must be in \(0, 1\], got 1.2"),
        ({"channel_order": "RGB"}, 'channel_order must be "rgb" or "bgr", got \'RGB\''),
        ({"providers": ["MagicProvider"]}, "no provider MagicProvider; it has .*CPUExecution"),
    ],
)
def test_arguments_out_of_range_are_refused(detector, arguments, message):
    with pytest.raises(PeckerError, match=message):
        detector((8, 8, 4, 4, BREAST, 0.5), **arguments)


def test_without_onnxruntime_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PeckerError, match="needs the package onnxruntime: pip install onnxruntime"):
        NudeNetDetector(tmp_path / "d.onnx")
