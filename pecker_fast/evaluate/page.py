"""What the reports of all kinds of erasure share: the run's conditions, an HTML page and JSON."""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pecker_fast.errors import PeckerError
from pecker_fast.files import write_text
from pecker_fast.masks.verify import FrozenCheck

__all__ = ["Picture", "RunReport", "Table", "percent"]


@dataclass(frozen=True)
class Picture:
    """A PNG of the page with its heading and the sentence that says what to look at.

    The first picture of a page and those that are `wide` take its whole width.
    """

    path: Path
    title: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: its heading.
        rows: as many cells each as there are columns; the first says what the others measure.
        columns: headings.
        note: a sentence below the heading, e.g. which detector counted, or "".
        facts: what report.json holds of it beside the rows, in plain types.
    """

    title: str
    rows: Sequence[Sequence[str]]
    columns: Sequence[str] = ("", "Original model", "Erased model")
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise PeckerError(
                    f"report: table {self.title!r} has {len(self.columns)} columns, but a row of "
                    f"{len(row)}: {list(row)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        rows = [list(row) for row in self.rows]
        return {"title": self.title, "note": self.note, "columns": list(self.columns), "rows": rows,
                **self.facts}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunReport(ABC):
    """The part of a report that is about the run.

    Attributes:
        frozen: the bit-by-bit comparison of the generator before and after.
        mask_kind: saliency, random or full.
        density: share of the generator's entries that were allowed to change.
        iterations: of the distillation.
        seed: of the run.
        backend: of the optimizer.
        wall_s: seconds from start to report.
        stage_s: seconds per stage.
        machine: see `machine_facts`.
        versions: see `versions`.
        config: every setting under its dotted key.
        resumed_at: iteration at which this process took the run up; `wall_s` starts there.
        training_s: seconds of training over all starts of the run; judging does not count. None
            where nobody says.
        processes: that shared the run.
    """

    TEMPLATE: ClassVar[str]

    frozen: FrozenCheck
    mask_kind: str
    density: float
    iterations: int
    seed: int
    backend: str
    wall_s: float
    stage_s: Mapping[str, float]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    resumed_at: int = 0
    training_s: float | None = None
    processes: int = 1

    @abstractmethod
    def headline(self) -> str:
        """One plain sentence: what became of what was to be forgotten."""

    @abstractmethod
    def kept_sentence(self) -> str:
        """One plain sentence: what became of the rest; "" where nobody looked."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The tables of the page, the most important one first."""

    def to_dict(self) -> dict[str, Any]:
        """What report.json says of the run, in plain types."""
        return {
            **self.frozen.to_dict(),
            "mask": self.mask_kind,
            "density": self.density,
            "iterations": self.iterations,
            "resumed_at": self.resumed_at,
            "wall_s": round(self.wall_s, 2),
            "training_s": None if self.training_s is None else round(self.training_s, 2),
            "processes": self.processes,
            "stage_s": {name: round(seconds, 2) for name, seconds in self.stage_s.items()},
            "backend": self.backend,
            "seed": self.seed,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "config": dict(self.config),
        }

    def conditions(self) -> list[tuple[str, str]]:
        """What the figures hold for."""
        machine = self.machine
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.stage_s.items())
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        resumed = f" (the wall time is from {self.resumed_at} on)" if self.resumed_at else ""
        return [
            ("Machine", f"{machine['device_name']}, {machine['cores']} cores"),
            ("Threads", str(machine["threads"])),
            ("Optimizer backend", self.backend),
            ("Seed", str(self.seed)),
            ("Iterations", f"{self.iterations}{resumed}"),
            ("Mask", f"{self.mask_kind}, density {self.density:.4g}"),
            ("Wall time", f"{self.wall_s:.0f} s ({stages})"),
            ("Software", packages),
        ]

    def write(self, folder: Path, pictures: Sequence[Picture]) -> None:
        """Write report.json and the self-contained report.html into `folder`."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("pecker_fast.evaluate", ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        embedded = [
            {
                "title": picture.title,
                "caption": picture.caption,
                "wide": picture.wide,
                "data": base64.b64encode(picture.path.read_bytes()).decode("ascii"),
            }
            for picture in pictures
        ]
        page = environment.get_template(self.TEMPLATE).render(report=self, pictures=embedded)
        write_text(folder / "report.html", page)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / "report.json", text + "\n")


def percent(share: float) -> str:
    """0.9731 -> '97.3 %'."""
    return f"{100 * share:.1f} %"
