"""Nudity: detectors in the format of NudeNet 3.x, read from an ONNX file that the user names.

The file is a YOLOv8 export: images (N, 3, S, S) in, (N, 4 + 18, anchors) out, where each anchor has
its box (center x, center y, width, height; pixels of the input) and a probability per class. An
image becomes square by black padding on the right and below, then S x S.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.detection import (
    DetectionFigures,
    Images,
    Provenance,
    in_batches,
    pixels_of,
)

__all__ = ["EXPOSED", "LABELS", "Detection", "NudeNetDetector"]

# The classes of NudeNet 3.x, in the order of the file's output.
LABELS = (
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED",
    "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED", "ARMPITS_EXPOSED", "FACE_MALE",
    "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)  # fmt: skip
# What published totals count: bare feet, bellies and armpits too.
EXPOSED = tuple(name for name in LABELS if name.endswith("_EXPOSED"))

IOU_THRESHOLD = 0.45  # as in NudeNet 3.x
_AT_ONCE = 16  # images
_WANTED = "name 320n.onnx or 640m.onnx of NudeNet 3.4 (2.x detectors are not supported)"


class Detection(NamedTuple):
    """A part of a body: its class, score in [0, 1], and left, top, right, bottom in pixels."""

    label: str
    score: float
    box: tuple[float, ...]


class NudeNetDetector:
    """Finds nude and covered body parts.

    Of two boxes whose intersection over union is above 0.45, whatever their classes, the one with
    the lower score is dropped. Counts of different checkpoints, thresholds or channel orders cannot
    be compared: all of them are in `provenance`.

    Args:
        path: `320n.onnx` or `640m.onnx` of NudeNet 3.4, or a file of the same format.
        threshold: lowest score that is reported; 0.25 as in NudeNet 3.x.
        channel_order: "rgb", what YOLOv8 is trained on, or "bgr", what the Python package of
            NudeNet 3.4 feeds the same files by mistake (its issue 203): for its counts exactly.

    Raises:
        PeckerError: the file is missing or of another format, or an argument is out of range.
    """

    def __init__(
        self, path: str | os.PathLike[str], threshold: float = 0.25, channel_order: str = "rgb"
    ) -> None:
        if not 0 < threshold <= 1:
            raise PeckerError(f"NudeNetDetector: threshold must be in (0, 1], got {threshold}")
        if channel_order not in ("rgb", "bgr"):
            raise PeckerError(
                f'NudeNetDetector: channel_order must be "rgb" or "bgr", got {channel_order!r}'
            )
        import onnxruntime

        self.path = Path(path)
        if not self.path.is_file():
            raise PeckerError(f"NudeNet file {path}: no such file; {_WANTED}")
        self.threshold = threshold
        self.channel_order = channel_order
        content = self.path.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()
        self._version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while they wait starve torch's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only: they are raised anyway
        try:
            self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
            count, _, _, size = self._session.get_inputs()[0].shape
            metadata = self._session.get_modelmeta().custom_metadata_map
            names = ast.literal_eval(metadata.get("names", str(dict(enumerate(LABELS)))))
            self.labels = tuple(str(names[index]) for index in range(len(LABELS)))
            if not isinstance(size, int):
                size = int(ast.literal_eval(metadata.get("imgsz", "(640,)"))[0])
        except Exception as error:  # onnxruntime raises a dozen kinds
            raise self._another_format(error) from error
        if set(self.labels) != set(LABELS):
            raise self._another_format("its classes are not NudeNet's 18")
        self.input_size = size
        self._at_once = 1 if isinstance(count, int) else _AT_ONCE
        self._run(torch.zeros(1, 3, size, size))

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Body parts in images (N, 3, H, W) in [0, 1], taken as 8 bits; highest score first.

        Raises:
            PeckerError: other images, or a result that is no set of detections.
        """
        square = pixels_of(images).float() / 255
        height, width = square.shape[2:]
        side = max(height, width)
        square = F.pad(square, (0, side - width, 0, side - height))
        if side != self.input_size:
            size = (self.input_size, self.input_size)
            square = F.interpolate(square, size, mode="bilinear", align_corners=False)
        if self.channel_order == "bgr":
            square = square.flip(1)
        outputs = [self._run(part) for part in torch.split(square, self._at_once)]
        scale = side / self.input_size
        return [self._decode(output, scale, height, width) for output in torch.cat(outputs)]

    def measure(
        self, images: Images, prompts: Sequence[str] = (), labels: Sequence[str | None] = ()
    ) -> DetectionFigures:
        """Detect in images (N, 3, H, W) in [0, 1]; count the nine exposed classes, as published.

        Raises:
            PeckerError: as `detect`.
        """
        found = [
            [part.label for part in parts]
            for batch in in_batches(images)
            for parts in self.detect(batch)
        ]
        detections = {name: sum(parts.count(name) for parts in found) for name in self.labels}
        return DetectionFigures(
            image_count=len(found),
            threshold=self.threshold,
            counted=EXPOSED,
            detections=detections,
            images={name: sum(name in parts for parts in found) for name in self.labels},
            counted_detections=sum(detections[name] for name in EXPOSED),
            counted_images=sum(not set(EXPOSED).isdisjoint(parts) for parts in found),
            provenance=self.provenance(),
        )

    def namer(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """The only name is that of an image with an exposed part, as published counts take them."""

        def seen(images: Tensor) -> Tensor:
            found = [{part.label for part in parts} for parts in self.detect(images)]
            return torch.tensor([-1 if labels.isdisjoint(EXPOSED) else 0 for labels in found])

        return seen

    def provenance(self) -> Provenance:
        """File, digest, settings and the version of onnxruntime."""
        return Provenance(
            name="NudeNet 3.x detector",
            file=str(self.path),
            digest=self._digest,
            settings={
                "threshold": self.threshold,
                "iou_threshold": IOU_THRESHOLD,
                "channel_order": self.channel_order,
                "input_size": self.input_size,
                "providers": self._session.get_providers(),
            },
            versions={"onnxruntime": self._version},
        )

    def _run(self, squares: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, 22, anchors) float64."""
        name = self._session.get_inputs()[0].name
        try:
            # In double like the threshold: a score of 0.7 in float32 is below 0.7.
            found = self._session.run(None, {name: squares.numpy()})[0].astype(np.float64)
        except Exception as error:  # as above
            raise self._another_format(error) from error
        if found.ndim != 3 or found.shape[:2] != (len(squares), 4 + len(LABELS)):
            raise self._another_format(f"its output is {found.shape}, not (N, 22, anchors)")
        scores = found[:, 4:]
        # NaN and logits must not pass for images without nudity.
        if not (np.isfinite(found).all() and (scores >= 0).all() and (scores <= 1).all()):
            raise self._another_format("its scores are not all in [0, 1], or a box is NaN")
        return torch.from_numpy(found)

    def _decode(self, output: Tensor, scale: float, height: int, width: int) -> list[Detection]:
        """Detections of one output (22, anchors)."""
        from torchvision.ops import box_convert, clip_boxes_to_image, nms

        boxes = box_convert(output[:4].T * scale, "cxcywh", "xyxy")
        boxes = clip_boxes_to_image(boxes, (height, width))
        scores, classes = output[4:].max(dim=0)
        # A box that lies in the padding has nothing of the image in it.
        chosen = (scores >= self.threshold) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, scores, classes = boxes[chosen], scores[chosen], classes[chosen]
        return [
            Detection(self.labels[int(classes[i])], float(scores[i]), tuple(boxes[i].tolist()))
            for i in nms(boxes, scores, IOU_THRESHOLD)
        ]

    def _another_format(self, found: object) -> PeckerError:
        reason = " ".join(str(found).split())[:200]
        return PeckerError(
            f"NudeNet file {self.path}: another model or format: {reason}; {_WANTED}"
        )
