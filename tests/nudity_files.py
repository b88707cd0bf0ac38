"""ONNX files in NudeNet's format whose detections are known by construction."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pecker_fast.evaluate.nudity import LABELS

SIZE = 32
FACE, BREAST, BELLY = (
    LABELS.index(name) for name in ("FACE_FEMALE", "FEMALE_BREAST_EXPOSED", "BELLY_EXPOSED")
)
NAMES = str(dict(enumerate(LABELS)))


def anchors(*entries, rows=22):
    """(rows, A): one anchor an entry, (center x, center y, width, height, class, score)."""
    output = np.zeros((rows, len(entries)), dtype=np.float32)
    for column, (*box, label, score) in enumerate(entries):
        output[:4, column] = box
        output[4 + label, column] = score
    return output


def write_file(
    path, output, probes=(), size=SIZE, count="batch", free_size=False, dtype=np.float32, **metadata
):
    """An ONNX file that gives `output` (rows, A) for every image.

    Args:
        probes: (row, anchor, channel, y, x): this entry of the output gets the value of that input
            pixel added, so that the output shows what the detector feeds in.
        size: input height and width in the graph.
        count: number of images the graph takes, an int or a name for any.
        free_size: any height and width.
        metadata: written into the file.
    """
    rows, columns = output.shape
    pixel = np.zeros(rows * columns, dtype=np.int64)
    gain = np.zeros((rows, columns), dtype=dtype)
    for row, column, channel, y, x in probes:
        pixel[row * columns + column] = (channel * size + y) * size + x
        gain[row, column] = 1
    constants = {
        "flat_shape": np.array([0, -1], dtype=np.int64),
        "pixel": pixel,
        "output_shape": np.array([0, rows, columns], dtype=np.int64),
        "gain": gain,
        "constant": output.astype(dtype),
    }
    nodes = [
        helper.make_node("Reshape", ["images", "flat_shape"], ["flat"]),
        helper.make_node("Gather", ["flat", "pixel"], ["probed"], axis=1),
        helper.make_node("Reshape", ["probed", "output_shape"], ["shaped"]),
        helper.make_node("Mul", ["shaped", "gain"], ["chosen"]),
        helper.make_node("Add", ["chosen", "constant"], ["output0"]),
    ]
    sides = ["height", "width"] if free_size else [size, size]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", kind, [count, 3, *sides])],
        [helper.make_tensor_value_info("output0", kind, [count, rows, columns])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # Versions that onnxruntime 1.19 can read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def hide_shape(path, shape):
    """Let the output's shape depend on an input pixel (times 0), so that no graph can tell it."""
    model = onnx.load(path)
    graph = model.graph
    graph.node[-1].output[0] = "unshaped"
    one = np.array([0], dtype=np.int64)
    for name, value in (("first", one), ("zero", np.float32(0)), ("shape", np.float32(shape))):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.initializer.append(numpy_helper.from_array(one - 1, "vector"))
    graph.node.extend(
        [
            helper.make_node("Gather", ["flat", "first"], ["pixels"], axis=1),
            helper.make_node("Reshape", ["pixels", "vector"], ["row"]),
            helper.make_node("Mul", ["row", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "shape"], ["floats"]),
            helper.make_node("Cast", ["floats"], ["ints"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["unshaped", "ints"], ["output0"]),
        ]
    )
    for name, dimension in zip("abc", graph.output[0].type.tensor_type.shape.dim, strict=True):
        dimension.dim_param = name
    onnx.checker.check_model(model)
    onnx.save(model, path)


def image(width, height, color="white"):
    """(1, 3, H, W) in [0, 1], of one colour."""
    pixels = np.array(Image.new("RGB", (width, height), color), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def boxes(detections):
    return [d.box for d in detections]
