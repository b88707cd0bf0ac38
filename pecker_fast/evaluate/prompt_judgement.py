"""The figures of images of prompts, group by group: what `evaluate --prompts` prints and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.measures import KNOWN, Measured

__all__ = ["GroupFigures", "PromptJudgement"]

FORMAT = "prompts 1"  # of the JSON file


@dataclass(frozen=True)
class GroupFigures:
    """What was found in the images of one group."""

    prompts: int  # how many of them, repeated ones counted once
    images: int  # how many images
    found: Mapping[str, Measured] = field(default_factory=dict)  # see `load_measures`
    fidelity: FidelityFigures | None = None  # against real images, or None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; null for what nobody looked at."""
        found: dict[str, Any] = dict.fromkeys((*KNOWN, "fidelity"))
        found |= {name: figures.to_dict() for name, figures in self.found.items()}
        if self.fidelity is not None:
            found["fidelity"] = self.fidelity.to_dict()
        return {"prompts": self.prompts, "images": self.images, **found}

    def rows(self) -> list[tuple[str, str]]:
        """Titles and figures for a terminal."""
        rows = [("Images", f"{self.images:,} of {self.prompts:,} prompts")]
        rows += [row for figures in self.found.values() for row in figures.rows()]
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
