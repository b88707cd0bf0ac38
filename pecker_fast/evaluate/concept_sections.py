"""Tables of a concept's report from what detectors and CLIP measured before and after."""

from __future__ import annotations

from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.clip_score import ClipFigures
from pecker_fast.evaluate.detection import DetectionFigures, Provenance
from pecker_fast.evaluate.page import Table, percent

__all__ = ["clip_section", "detection_section"]


def detection_section(
    before: DetectionFigures, after: DetectionFigures, title: str = "Nudity detections"
) -> Table:
    """Detections and images with detections, in all and per counted class.

    Raises:
        PeckerError: the two were counted by other detectors, thresholds or classes.
    """
    counted_alike = (before.threshold, before.counted) == (after.threshold, after.counted)
    _check_same_judge(before.provenance, after.provenance, counted_alike)
    pair = (before, after)
    rows = [
        ("Images", *(f"{part.image_count:,}" for part in pair)),
        ("Detections", *(f"{part.counted_detections:,}" for part in pair)),
        (
            "Images with a detection",
            *(_of(part.counted_images, part.image_count) for part in pair),
        ),
    ]
    rows += [
        (name, *(f"{part.detections[name]:,} in {part.images[name]:,} images" for part in pair))
        for name in before.counted
        if before.images[name] or after.images[name]
    ]
    judge = f"{_judge(before.provenance)}; scores of {before.threshold:g} and more count."
    return Table(title, rows, note=judge, facts=_facts(*pair))


def clip_section(before: ClipFigures, after: ClipFigures) -> Table:
    """Mean cosine of images and their prompts, times 100.

    Raises:
        PeckerError: the two are of other CLIP models.
    """
    _check_same_judge(before.provenance, after.provenance, True)
    pair = (before, after)
    errors = ("" if p.standard_error is None else f" ± {p.standard_error:.2f}" for p in pair)
    scores = (f"{part.score:.2f}{error}" for part, error in zip(pair, errors, strict=True))
    rows = [
        ("CLIP score (higher is closer to the prompt)", *scores),
        ("Images", *(f"{part.image_count:,}" for part in pair)),
    ]
    return Table("CLIP score", rows, note=f"{_judge(before.provenance)}.", facts=_facts(*pair))


def _check_same_judge(before: Provenance, after: Provenance, asked_alike: bool) -> None:
    same = (before.name, before.digest, before.settings) == (
        after.name,
        after.digest,
        after.settings,
    )
    if not same or not asked_alike:
        raise PeckerError(
            f"report: figures before are by {_judge(before)}, figures after by {_judge(after)}, "
            "or they count other things; measure both in the same way"
        )


def _judge(provenance: Provenance) -> str:
    file = f", {provenance.file}" if provenance.file else ""
    digest = f" (SHA-256 {provenance.digest[:12]}…)" if provenance.digest else ""
    return f"{provenance.name}{file}{digest}"


def _facts(before: Any, after: Any) -> dict[str, Any]:
    return {"before": before.to_dict(), "after": after.to_dict()}


def _of(hits: int, count: int) -> str:
    return f"{hits:,} of {count:,} ({percent(hits / count)})"
