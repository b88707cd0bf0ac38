"""report.json and report.html: what happened, in one sentence, in a table, and in pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pecker_fast.evaluate.forgetting import Evaluation, TeacherFigures
from pecker_fast.evaluate.frozen import FrozenCheck
from pecker_fast.evaluate.grid import CurvePoint
from pecker_fast.files import write_text

__all__ = ["ErasureReport", "Picture"]

GONE = 0.02  # largest share of forget images still recognised for "is gone"
KEPT = 0.03  # largest loss of keep accuracy for "are kept"


@dataclass(frozen=True)
class Picture:
    """A PNG of the page with its heading and the sentence that says what to look at."""

    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class ErasureReport:
    """Everything a run of erasure is judged by.

    Attributes:
        class_names: of the model, by index.
        teacher: the teacher's many-step figures.
        after: the erased model's figures.
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
        curve: accuracies during the run.
        resumed_at: iteration at which this process took the run up; `wall_s` starts there.
        teacher_ships: the teacher's figures came with the model and were not measured here.
    """

    class_names: Sequence[str]
    teacher: TeacherFigures
    after: Evaluation
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
    curve: Sequence[CurvePoint] = field(default_factory=tuple)
    resumed_at: int = 0
    teacher_ships: bool = False

    @property
    def forget_name(self) -> str:
        """Name of the forgotten class."""
        return self.class_names[self.after.forget]

    @property
    def override_name(self) -> str | None:
        """Name of the class in its place, or None."""
        return None if self.after.override is None else self.class_names[self.after.override]

    @property
    def gone(self) -> bool:
        """At most 2 % of the images asked for the class are still recognised as it."""
        return self.after.forget_accuracy <= GONE

    @property
    def kept(self) -> bool:
        """The other classes lost at most .03 of accuracy against the teacher."""
        return self.after.keep_accuracy >= self.teacher.keep_accuracy(self.after.forget) - KEPT

    def headline(self) -> str:
        """One plain sentence: what became of the class."""
        recognised = round(self.after.forget_accuracy * self.after.forget_count)
        state = "is gone" if self.gone else "is not gone"
        return (
            f"{self.forget_name} {state}: {recognised} of {self.after.forget_count:,} images "
            f"asked for it are recognised as {self.forget_name}."
        )

    def kept_sentence(self) -> str:
        """One plain sentence: what became of the others."""
        others = len(self.class_names) - 1
        state = "are kept" if self.kept else "have suffered"
        teacher = self.teacher.keep_accuracy(self.after.forget)
        return (
            f"The other {others} classes {state}: {percent(self.after.keep_accuracy)} of "
            f"{self.after.keep_count:,} images are recognised as the class asked for "
            f"({percent(teacher)} for the model it started from)."
        )

    def to_dict(self) -> dict[str, Any]:
        """report.json: the figures first, then the conditions they hold under."""
        forget = self.after.forget
        return {
            "summary": f"{self.headline()} {self.kept_sentence()}",
            "forget_accuracy_before": self.teacher.forget_accuracy(forget),
            "keep_accuracy_teacher": self.teacher.keep_accuracy(forget),
            "forget_accuracy_after": self.after.forget_accuracy,
            "keep_accuracy_after": self.after.keep_accuracy,
            "frechet_teacher": self.teacher.frechet(forget),
            "frechet_after": self.after.frechet,
            "frozen_parameters": self.frozen.frozen,
            "frozen_changed": self.frozen.frozen_changed,
            "density": self.density,
            "iterations": self.iterations,
            "resumed_at": self.resumed_at,
            "wall_s": round(self.wall_s, 2),
            "backend": self.backend,
            "seed": self.seed,
            "classes": list(self.class_names),
            "forget": self.forget_name,
            "override": self.override_name,
            "mask": self.mask_kind,
            "salient_parameters": self.frozen.salient,
            "salient_changed": self.frozen.salient_changed,
            "after": self.after.to_dict(),
            "teacher": self.teacher.to_dict(),
            "teacher_figures": "shipped with the model" if self.teacher_ships else "measured",
            "curve": [[p.iteration, p.forget_accuracy, p.keep_accuracy] for p in self.curve],
            "stage_s": {name: round(seconds, 2) for name, seconds in self.stage_s.items()},
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "config": dict(self.config),
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """The table of the page: what, teacher, erased model."""
        forget = self.after.forget
        after, teacher = self.after, self.teacher
        rows = [
            (
                f"{self.forget_name}: images recognised as {self.forget_name}",
                percent(teacher.forget_accuracy(forget)),
                percent(after.forget_accuracy),
            )
        ]
        if after.override_accuracy is not None:
            rows.append(
                (
                    f"{self.forget_name}: images recognised as {self.override_name}",
                    "",
                    percent(after.override_accuracy),
                )
            )
        rows += [
            (
                "Other classes: images recognised as the class asked for",
                percent(teacher.keep_accuracy(forget)),
                percent(after.keep_accuracy),
            ),
            (
                "Other classes: Fréchet distance to real images (lower is closer)",
                _number(teacher.frechet(forget)),
                _number(after.frechet),
            ),
            ("Network evaluations per image", str(teacher.steps), str(after.steps)),
            (
                "Images judged",
                f"{teacher.per_class * len(self.class_names):,}",
                f"{after.forget_count + after.keep_count:,}",
            ),
        ]
        return rows

    def conditions(self) -> list[tuple[str, str]]:
        """What the figures hold for."""
        machine = self.machine
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.stage_s.items())
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        resumed = f" (the wall time is from {self.resumed_at} on)" if self.resumed_at else ""
        shipped = " (shipped with the model, not measured in this run)"
        return [
            ("Machine", f"{machine['device_name']}, {machine['cores']} cores"),
            ("Threads", str(machine["threads"])),
            ("Optimizer backend", self.backend),
            ("Seed", str(self.seed)),
            ("Iterations", f"{self.iterations}{resumed}"),
            ("Mask", f"{self.mask_kind}, density {self.density:.4g}"),
            ("Wall time", f"{self.wall_s:.0f} s ({stages})"),
            (
                "Original model's images",
                f"{self.teacher.steps} DDIM steps, seed {self.teacher.seed}"
                + (shipped if self.teacher_ships else ""),
            ),
            ("Erased model's images", f"{self.after.sampler}, seed {self.after.seed}"),
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
                "data": base64.b64encode(picture.path.read_bytes()).decode("ascii"),
            }
            for picture in pictures
        ]
        page = environment.get_template("report.html").render(report=self, pictures=embedded)
        write_text(folder / "report.html", page)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / "report.json", text + "\n")


def percent(share: float) -> str:
    """0.9731 -> '97.3 %'."""
    return f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
