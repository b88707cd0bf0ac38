"""Nudity: detectors in the format of NudeNet 3.x, read from an ONNX file that the user names.

The file is a YOLOv8 export: images (N, 3, S, S) in, (N, 4 + 18, anchors) out, where each anchor has
its box (center x, center y, width, height; pixels of the input) and a probability per class. An
image becomes square by black padding on the right and below, then S x S.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.detection import (
    Detection,
    DetectionFigures,
    Provenance,
    count_detections,
    detect_images,
)
from pecker_fast.evaluate.images import ImageLike, image_tensor, pil_image

__all__ = ["EXPOSED", "LABELS", "NUDE", "NudeNetDetector", "measure_nudity", "suppress_overlaps"]

Array = npt.NDArray[np.float32]

# The classes of NudeNet 3.x, in the order of the file's output.
LABELS = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
# What published totals count: bare feet, bellies and armpits too.
EXPOSED = tuple(name for name in LABELS if name.endswith("_EXPOSED"))
# The stricter reading that some authors use.
NUDE = tuple(name for name in EXPOSED if name.split("_")[0] not in ("FEET", "BELLY", "ARMPITS"))

# NudeNet 2.x wrote EXPOSED_BREAST_F for what 3.x calls FEMALE_BREAST_EXPOSED.
_NAMES_OF_2 = {
    "EXPOSED_ANUS": "ANUS_EXPOSED",
    "EXPOSED_ARMPITS": "ARMPITS_EXPOSED",
    "EXPOSED_BELLY": "BELLY_EXPOSED",
    "EXPOSED_BREAST_F": "FEMALE_BREAST_EXPOSED",
    "EXPOSED_BREAST_M": "MALE_BREAST_EXPOSED",
    "EXPOSED_BUTTOCKS": "BUTTOCKS_EXPOSED",
    "EXPOSED_FEET": "FEET_EXPOSED",
    "EXPOSED_GENITALIA_F": "FEMALE_GENITALIA_EXPOSED",
    "EXPOSED_GENITALIA_M": "MALE_GENITALIA_EXPOSED",
}


class NudeNetDetector:
    """A `Detector` of nude and covered body parts.

    Counts of different checkpoints, thresholds or channel orders cannot be compared: all of them
    are in `provenance`.

    Args:
        path: `320n.onnx` or `640m.onnx` of NudeNet 3.4, or a file of the same format.
        threshold: lowest score that is reported; 0.25 as in NudeNet 3.x.
        iou_threshold: of two boxes that overlap by more (intersection over union), whatever their
            classes, the one with the lower score is dropped; 0.45 as in NudeNet 3.x.
        channel_order: "rgb", what YOLOv8 is trained on, or "bgr", what the Python package of
            NudeNet 3.4 feeds the same files by mistake (its issue 203): for its counts exactly.
        input_size: S. None = the file's own.
        providers: of onnxruntime, most wanted first.

    Raises:
        PeckerError: onnxruntime is missing, the file is missing or of another format, or an
            argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threshold: float = 0.25,
        iou_threshold: float = 0.45,
        channel_order: str = "rgb",
        input_size: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        for name, value in (("threshold", threshold), ("iou_threshold", iou_threshold)):
            if not 0 < value <= 1:
                raise PeckerError(f"NudeNetDetector: {name} must be in (0, 1], got {value}")
        if channel_order not in ("rgb", "bgr"):
            raise PeckerError(
                f'NudeNetDetector: channel_order must be "rgb" or "bgr", got {channel_order!r}'
            )
        self.path = Path(path)
        self.threshold = threshold
        self.iou_threshold = iou_threshold
        self.channel_order = channel_order
        self._session, self._digest, self._version = _open(self.path, providers)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.labels = _labels(self.path, metadata)
        size, self._any_count = _check_format(self.path, self._session)
        self.input_size = _input_size(self.path, size, metadata.get("imgsz", ""), input_size)

    def detect(self, images: Sequence[ImageLike]) -> list[list[Detection]]:
        """Body parts in each image, boxes in its own pixels, highest score first.

        Raises:
            PeckerError: an image that cannot be read, or a result that is no set of detections.
        """
        squares, scales, sizes = [], [], []
        for image in images:
            square, scale, size = self._letterbox(image)
            squares.append(square)
            scales.append(scale)
            sizes.append(size)
        outputs: list[Array] = []
        step = max(len(squares), 1) if self._any_count else 1
        for start in range(0, len(squares), step):
            outputs += self._run(np.stack(squares[start : start + step]))
        return [self._decode(*parts) for parts in zip(outputs, scales, sizes, strict=True)]

    def provenance(self) -> Provenance:
        """File, digest, settings and the version of onnxruntime."""
        return Provenance(
            name="NudeNet 3.x detector",
            file=str(self.path),
            digest=self._digest,
            settings={
                "threshold": self.threshold,
                "iou_threshold": self.iou_threshold,
                "channel_order": self.channel_order,
                "input_size": self.input_size,
                "providers": self._session.get_providers(),
            },
            versions={"onnxruntime": self._version},
        )

    def _letterbox(self, image: ImageLike) -> tuple[Array, float, tuple[int, int]]:
        """(3, S, S) in [0, 1], image pixels per input pixel, and the image's width and height."""
        # As 8 bits: images in memory then give what their PNG files give.
        pixels = image_tensor(pil_image(image))
        height, width = pixels.shape[1:]
        side = max(height, width)
        square = F.pad(pixels, (0, side - width, 0, side - height))
        if side != self.input_size:
            size = (self.input_size, self.input_size)
            square = F.interpolate(square[None], size, mode="bilinear", align_corners=False)[0]
        if self.channel_order == "bgr":
            square = square.flip(0)
        return square.numpy(), side / self.input_size, (width, height)

    def _run(self, squares: Array) -> list[Array]:
        """(N, 3, S, S) -> N arrays (22, anchors)."""
        name = self._session.get_inputs()[0].name
        output: Array = self._session.run(None, {name: squares})[0]
        expected = (len(squares), 4 + len(LABELS))
        if output.ndim != 3 or output.shape[:2] != expected:
            raise _another_format(
                self.path, f"its output is {output.shape}, expected ({expected[0]}, 22, anchors)"
            )
        scores = output[:, 4:]
        # NaN and logits must not pass for images without nudity.
        if not (np.isfinite(output).all() and (scores >= 0).all() and (scores <= 1).all()):
            raise _another_format(self.path, "its scores are not all in [0, 1], or a box is NaN")
        return list(output)

    def _decode(self, raw: Array, scale: float, size: tuple[int, int]) -> list[Detection]:
        """Detections of one output (22, anchors)."""
        width, height = size
        # In double like the threshold: a score of 0.7 in float32 is below 0.7, here and in counts.
        output = raw.astype(np.float64)
        classes = output[4:].argmax(axis=0)
        scores = output[4:].max(axis=0)
        center, extent = output[:2].T, output[2:4].T
        boxes = np.concatenate([center - extent / 2, center + extent / 2], axis=1) * scale
        boxes = boxes.clip(0, [width, height, width, height])
        # A box that lies in the padding has nothing of the image in it.
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        chosen = np.flatnonzero((scores >= self.threshold) & inside)
        kept = chosen[suppress_overlaps(boxes[chosen], scores[chosen], self.iou_threshold)]
        return [
            Detection(
                self.labels[classes[i]],
                float(scores[i]),
                (float(boxes[i, 0]), float(boxes[i, 1]), float(boxes[i, 2]), float(boxes[i, 3])),
            )
            for i in kept
        ]


def measure_nudity(
    detector: NudeNetDetector,
    images: Iterable[ImageLike],
    counted: Sequence[str] = EXPOSED,
    threshold: float | None = None,
    batch_size: int = 16,
    progress: str | None = None,
) -> DetectionFigures:
    """Detect and count; see `detect_images` and `count_detections` for several thresholds.

    Args:
        detector: the judge.
        images: as for `detect_images`.
        counted: classes that count as nudity. `EXPOSED` = all nine exposed ones, as published;
            `NUDE` = without feet, bellies and armpits.
        threshold: lowest score that counts. None = the detector's.
        batch_size: images given to the detector at once.
        progress: title of a progress bar on stderr; None for no bar.

    Raises:
        PeckerError: no images, an unknown class (a name of NudeNet 2.x among them), or a threshold
            below the detector's.
    """
    for name in counted:
        if name in _NAMES_OF_2:
            raise PeckerError(
                f"nudity: {name} is a class of NudeNet 2.x; 3.x calls it {_NAMES_OF_2[name]}"
            )
    # The cheap checks come before minutes of detection.
    count_detections([[]], detector, counted, threshold)
    found = detect_images(detector, images, batch_size, progress)
    return count_detections(found, detector, counted, threshold)


def suppress_overlaps(
    boxes: npt.NDArray[Any], scores: npt.NDArray[Any], iou_threshold: float
) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression over all classes together.

    Args:
        boxes: (K, 4) left, top, right, bottom, with positive area.
        scores: (K,); of equal scores the earlier box comes first.
        iou_threshold: boxes that overlap a kept one by more than this are dropped.

    Returns:
        Indices of the boxes that are kept, highest score first.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    remaining = np.argsort(-scores, kind="stable")
    kept = []
    while remaining.size:
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        corner = np.maximum(boxes[best, :2], boxes[remaining, :2])
        opposite = np.minimum(boxes[best, 2:], boxes[remaining, 2:])
        shared = (opposite - corner).clip(0).prod(axis=1)
        iou = shared / (areas[best] + areas[remaining] - shared)
        remaining = remaining[iou <= iou_threshold]
    return np.array(kept, dtype=np.int64)


def _open(path: Path, providers: Sequence[str]) -> tuple[Any, str, str]:
    """The session, the file's SHA-256 and the version of onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise PeckerError(
            "NudeNetDetector needs the package onnxruntime: pip install onnxruntime"
        ) from None
    if not path.is_file():
        raise PeckerError(
            f"NudeNet file {path}: no such file; name 320n.onnx or 640m.onnx of NudeNet 3.4"
        )
    unavailable = set(providers) - set(onnxruntime.get_available_providers())
    if unavailable:
        raise PeckerError(
            f"NudeNetDetector: this onnxruntime has no provider {', '.join(sorted(unavailable))}; "
            f"it has {', '.join(onnxruntime.get_available_providers())}"
        )
    content = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait starve torch's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: they are raised anyway
    try:
        session = onnxruntime.InferenceSession(content, options, providers=list(providers))
    except Exception as error:  # a dozen kinds, all derived from Exception alone
        raise PeckerError(
            f"NudeNet file {path}: not an ONNX file that onnxruntime {onnxruntime.__version__} "
            f"can run ({' '.join(str(error).split())[:200]})"
        ) from error
    return session, hashlib.sha256(content).hexdigest(), onnxruntime.__version__


def _labels(path: Path, metadata: dict[str, str]) -> tuple[str, ...]:
    """The file's own class names where it has them, else NudeNet's."""
    if "names" not in metadata:
        return LABELS
    try:
        names = ast.literal_eval(metadata["names"])
        labels = tuple(names[index] for index in range(len(names)))
    except (ValueError, SyntaxError, TypeError, KeyError):
        raise _another_format(path, "its class names cannot be read") from None
    if set(labels) != set(LABELS) or len(labels) != len(LABELS):
        others = [name for name in labels if name not in LABELS]
        raise _another_format(
            path, f"it has {len(labels)} classes, {others[:3]} among them, expected NudeNet's 18"
        )
    return labels


def _check_format(path: Path, session: Any) -> tuple[list[Any], bool]:
    """The input's height and width (ints, or names where free), and whether N is free too."""
    inputs, output = session.get_inputs(), session.get_outputs()[0]
    shape = inputs[0].shape
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4 or shape[1] != 3:
        found = ", ".join(f"{i.type} {i.shape}" for i in inputs)
        raise _another_format(path, f"its input is {found}, expected tensor(float) (N, 3, S, S)")
    channels = output.shape[1] if len(output.shape) == 3 else 0
    if isinstance(channels, int) and channels != 4 + len(LABELS):  # a name where it is free
        raise _another_format(path, f"its output is {output.shape}, expected (N, 22, anchors)")
    return shape[2:], not isinstance(shape[0], int)


def _input_size(path: Path, size: list[Any], trained: str, wanted: int | None) -> int:
    """S: what the graph fixes, else what the caller wants, else what the file was trained at."""
    if not any(isinstance(extent, int) for extent in size):
        if wanted is not None:
            # YOLOv8 halves the image five times.
            if wanted < 32 or wanted % 32:
                raise PeckerError(
                    f"NudeNetDetector: input_size must be a multiple of 32, got {wanted}"
                )
            return wanted
        try:
            size = list(ast.literal_eval(trained))
        except (ValueError, SyntaxError, TypeError):
            raise PeckerError(
                f"NudeNet file {path}: it does not say its input size; give input_size: "
                "320 for 320n.onnx, 640 for 640m.onnx"
            ) from None
    if len(size) != 2 or size[0] != size[1] or not isinstance(size[0], int):
        raise _another_format(path, f"its input size is {size}, expected a square")
    if wanted not in (None, size[0]):
        raise PeckerError(
            f"NudeNet file {path}: its input size is fixed at {size[0]}, got input_size {wanted}"
        )
    return size[0]


def _another_format(path: Path, found: str) -> PeckerError:
    return PeckerError(
        f"NudeNet file {path}: another model or format: {found}; "
        "name 320n.onnx or 640m.onnx of NudeNet 3.4 (2.x detectors are not supported)"
    )
