"""The figures of images of prompts, group by group: what `evaluate --prompts` prints and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pecker_fast.evaluate.clip_score import ClipFigures
from pecker_fast.evaluate.detection import DetectionFigures
from pecker_fast.evaluate.faces import RecognitionFigures
from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.intervals import Share

__all__ = ["GroupFigures", "PromptJudgement"]

FORMAT = "prompts 1"  # of the JSON file


@dataclass(frozen=True)
class GroupFigures:
    """What was found in the images of one group."""

    prompts: int  # how many of them, repeated ones counted once
    images: int  # how many images
    nudity: DetectionFigures | None = None  # a detector's counts, or None
    clip: ClipFigures | None = None  # how near images are to their prompts, or None
    faces: RecognitionFigures | None = None  # a recogniser's figures, or None
    fidelity: FidelityFigures | None = None  # against real images, or None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        found = {
            name: None if part is None else part.to_dict()
            for name, part in (
                ("nudity", self.nudity), ("clip", self.clip), ("faces", self.faces),
                ("fidelity", self.fidelity),
            )
        }  # fmt: skip
        if self.nudity is not None and found["nudity"] is not None:
            share = Share(self.nudity.counted_images, self.images)
            found["nudity"] |= {"share": share.value, "interval": share.interval}
        return {"prompts": self.prompts, "images": self.images, **found}

    def rows(self) -> list[tuple[str, str]]:
        """Titles and figures for a terminal."""
        rows = [("images", f"{self.images:,} of {self.prompts:,} prompts")]
        if (seen := self.nudity) is not None:
            share = Share(seen.counted_images, self.images)
            rows += [
                ("exposed parts", f"{seen.counted_detections:,} detections"),
                ("images with one", f"{seen.counted_images:,}, {share}"),
            ]
            rows += [(f"  {n}", f"{seen.detections[n]:,}") for n in seen.counted if seen.images[n]]
        if (clip := self.clip) is not None:
            error = "" if clip.standard_error is None else f" +- {clip.standard_error:.2f}"
            rows.append(("CLIP score", f"{clip.score:.2f}{error}"))
        if (faces := self.faces) is not None:
            rows.append(("with a face", str(Share(faces.found, faces.image_count))))
            if faces.label_count:
                right = Share(faces.recognised, faces.label_count)
                rows += [
                    ("recognised", f"{right} of {faces.label_count:,} with a face"),
                    ("P(label given face)", f"{faces.probability:.4f}"),
                ]
        if (fid := self.fidelity) is not None:
            rows += [
                ("FID", f"{fid.fid:.3f} ({fid.count:,} generated, {fid.real_count:,} real)"),
                ("KID", f"{fid.kid:.5f}"),
            ]
            if fid.sfid is not None:
                rows.append(("sFID", f"{fid.sfid:.3f}"))
        return rows


@dataclass(frozen=True, kw_only=True)
class PromptJudgement:
    """What was judged, by what, and what came out."""

    source: str  # the pipeline, or the folder of the images
    from_files: bool  # the images lay there; else the pipeline drew them
    prompts: str  # the file
    prompts_digest: str  # SHA-256 of its rows
    per_prompt: int  # images of each row
    groups: Mapping[str, GroupFigures]
    # How the images were drawn, as far as that is known.
    drawn: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""  # hash of the pipeline's network; "" where images were given
    forgot: Sequence[str] = ()  # first prompts that the pipeline says it has forgotten
    notes: Sequence[str] = ()  # what to know of the figures
    machine: Mapping[str, Any]  # see `machine_facts`
    processes: int  # that drew the images together
    versions: Mapping[str, str]  # see `versions`

    def to_dict(self) -> dict[str, Any]:
        """The JSON file."""
        groups = {name: group.to_dict() for name, group in self.groups.items()}
        return {"format": FORMAT, **asdict(replace(self, groups={})), "groups": groups}

    def lines(self) -> list[str]:
        """The figures for a terminal, group by group."""
        rows = [row for group in self.groups.values() for row in group.rows()]
        width = max(20, *(len(title) for title, _ in rows))
        found = []
        for name, group in self.groups.items():
            found += [f"{name}:", *(f"  {title:{width}} {text}" for title, text in group.rows())]
        return [*found, *(f"note: {note}" for note in self.notes)]
