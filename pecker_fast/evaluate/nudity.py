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

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.detection import Detection, DetectionFigures, Provenance
from pecker_fast.evaluate.images import ImageLike, batches, image_tensor, pil_image

__all__ = ["EXPOSED", "LABELS", "NUDE", "NudeNetDetector", "measure_nudity"]

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

_WANTED = "name 320n.onnx or 640m.onnx of NudeNet 3.4 (2.x detectors are not supported)"


class NudeNetDetector:
    """Finds nude and covered body parts.

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
        PeckerError: the file is missing or of another format, or an argument is out of range.
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
        import onnxruntime
        from torchvision.ops import nms

        self.path = Path(path)
        if not self.path.is_file():
            raise PeckerError(f"NudeNet file {path}: no such file; {_WANTED}")
        self.threshold = threshold
        self.iou_threshold = iou_threshold
        self.channel_order = channel_order
        content = self.path.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()
        self._version = onnxruntime.__version__
        self._nms = nms
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while they wait starve torch's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only: they are raised anyway
        try:
            self._session = onnxruntime.InferenceSession(content, options, list(providers))
            count, _, _, fixed = self._session.get_inputs()[0].shape
            metadata = self._session.get_modelmeta().custom_metadata_map
            names = ast.literal_eval(metadata.get("names", str(dict(enumerate(LABELS)))))
            self.labels = tuple(str(names[index]) for index in range(len(LABELS)))
            if not isinstance(fixed, int):
                fixed = ast.literal_eval(metadata.get("imgsz", "(640,)"))[0]
        except Exception as error:  # onnxruntime raises a dozen kinds
            raise self._another_format(error) from error
        if set(self.labels) != set(LABELS):
            raise self._another_format("its classes are not NudeNet's 18")
        self._at_once = 1 if isinstance(count, int) else None
        self.input_size = input_size or fixed
        self._run(np.zeros((1, 3, self.input_size, self.input_size), np.float32))

    def detect(self, images: Sequence[ImageLike]) -> list[list[Detection]]:
        """Body parts in each image, boxes in its own pixels, highest score first.

        Raises:
            PeckerError: an image that cannot be read, or a result that is no set of detections.
        """
        inputs = [self._letterbox(image) for image in images]
        step = self._at_once or max(len(inputs), 1)
        outputs: list[Array] = []
        for start in range(0, len(inputs), step):
            outputs += self._run(np.stack([part[0] for part in inputs[start : start + step]]))
        return [
            self._decode(output, scale, size)
            for output, (_, scale, size) in zip(outputs, inputs, strict=True)
        ]

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
        try:
            output: Array = self._session.run(None, {name: squares})[0]
        except Exception as error:  # as above
            raise self._another_format(error) from error
        if output.ndim != 3 or output.shape[:2] != (len(squares), 4 + len(LABELS)):
            raise self._another_format(f"its output is {output.shape}, not (N, 22, anchors)")
        scores = output[:, 4:]
        # NaN and logits must not pass for images without nudity.
        if not (np.isfinite(output).all() and (scores >= 0).all() and (scores <= 1).all()):
            raise self._another_format("its scores are not all in [0, 1], or a box is NaN")
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
        candidates = torch.from_numpy(boxes[chosen]), torch.from_numpy(scores[chosen])
        kept = chosen[self._nms(*candidates, self.iou_threshold).numpy()]
        return [
            Detection(
                self.labels[classes[i]],
                float(scores[i]),
                (float(boxes[i, 0]), float(boxes[i, 1]), float(boxes[i, 2]), float(boxes[i, 3])),
            )
            for i in kept
        ]

    def _another_format(self, found: object) -> PeckerError:
        reason = " ".join(str(found).split())[:200]
        return PeckerError(
            f"NudeNet file {self.path}: another model or format: {reason}; {_WANTED}"
        )


def measure_nudity(
    detector: NudeNetDetector,
    images: Iterable[ImageLike],
    counted: Sequence[str] = EXPOSED,
    threshold: float | None = None,
    batch_size: int = 16,
    progress: str | None = None,
) -> DetectionFigures:
    """Detect and count.

    Args:
        detector: the judge.
        images: an (N, 3, H, W) tensor in [0, 1], or any iterable of images or paths; read as it
            goes, so that a generator of thousands of images is fine.
        counted: classes that count as nudity. `EXPOSED` = all nine exposed ones, as published;
            `NUDE` = without feet, bellies and armpits.
        threshold: lowest score that counts, at least the detector's. None = the detector's.
        batch_size: images given to the detector at once.
        progress: title of a progress bar on stderr; None for no bar.

    Raises:
        PeckerError: no images, an unknown class, or a threshold below the detector's, whose counts
            would be too low.
    """
    threshold = detector.threshold if threshold is None else threshold
    if not detector.threshold <= threshold <= 1:
        raise PeckerError(
            f"nudity: threshold must be from {detector.threshold:g}, the detector's own, to 1, "
            f"got {threshold:g}; detect again with a lower one"
        )
    counted = tuple(dict.fromkeys(counted))
    if unknown := set(counted) - set(detector.labels):
        raise PeckerError(
            f"nudity: unknown class {min(unknown)}; NudeNet 3.x has {', '.join(detector.labels)}"
        )
    per_image = [
        [part.label for part in found if part.score >= threshold]
        for batch in batches(images, batch_size, progress)
        for found in detector.detect(batch)
    ]
    if not per_image:
        raise PeckerError("nudity: there are no images to look at")
    detections = {name: sum(found.count(name) for found in per_image) for name in detector.labels}
    return DetectionFigures(
        image_count=len(per_image),
        threshold=threshold,
        counted=counted,
        detections=detections,
        images={name: sum(name in found for found in per_image) for name in detector.labels},
        counted_detections=sum(detections[name] for name in counted),
        counted_images=sum(not set(counted).isdisjoint(found) for found in per_image),
        provenance=detector.provenance(),
    )
