"""report.json and report.html: what happened, in one sentence, in a table, and in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation, TeacherFigures
from pecker_fast.evaluate.page import Picture, RunReport, Table, percent

__all__ = ["ErasureReport", "Picture"]

GONE = 0.02  # largest share of forget images still recognised for "is gone"
KEPT = 0.03  # largest loss of keep accuracy for "are kept"


@dataclass(frozen=True, kw_only=True)
class ErasureReport(RunReport):
    """Everything a run of erasure is judged by.

    Attributes:
        class_names: of the model, by index.
        teacher: the teacher's many-step figures.
        after: the erased model's figures.
        curve: accuracies during the run.
        teacher_ships: the teacher's figures came with the model and were not measured here.
        images: the real images that the run was trained on, in words; None where it needs none.
    """

    TEMPLATE: ClassVar[str] = "report.html"

    class_names: Sequence[str]
    teacher: TeacherFigures
    after: Evaluation
    curve: Sequence[CurvePoint] = field(default_factory=tuple)
    teacher_ships: bool = False
    images: str | None = None

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
            "classes": list(self.class_names),
            "forget": self.forget_name,
            "override": self.override_name,
            "after": self.after.to_dict(),
            "teacher": self.teacher.to_dict(),
            "teacher_figures": "shipped with the model" if self.teacher_ships else "measured",
            "images": self.images,
            "curve": [asdict(point) for point in self.curve],
            **super().to_dict(),
        }

    def tables(self) -> list[Table]:
        """One table."""
        return [Table("Figures", self.rows())]

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
        shipped = " (shipped with the model, not measured in this run)"
        trained_on = [] if self.images is None else [("Trained on", self.images)]
        return [
            *super().conditions(),
            *trained_on,
            (
                "Original model's images",
                f"{self.teacher.steps} DDIM steps, seed {self.teacher.seed}"
                + (shipped if self.teacher_ships else ""),
            ),
            ("Erased model's images", f"{self.after.sampler}, seed {self.after.seed}"),
        ]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
