"""report.json and report.html: what happened, in one sentence, in tables, and in pictures.

`class_report` is about a class of a model folder; `concept_report` has its sister for prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation, Hits, TeacherFigures, percent
from pecker_fast.evaluate.page import Picture, Section, Sentence, Table, Terms, write_page
from pecker_fast.files import write_text
from pecker_fast.masks.verify import FrozenCheck

__all__ = ["Report", "RunFacts", "class_report", "gone_sentence", "kept_sentence"]

GONE = 0.02  # largest share of forget images still recognised for "is gone"
KEPT = 0.03  # largest loss of keep accuracy for "are kept"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The part of a report that is about the run, in the order of report.json.

    Attributes:
        frozen: the bit-by-bit comparison of the generator before and after.
        mask: saliency, random, full or given.
        density: share of the generator's entries that were allowed to change.
        iterations: of the training.
        resumed_at: iteration at which this process took the run up; `wall_s` starts there.
        wall_s: seconds from start to report.
        training_s: seconds of training over all starts of the run; judging does not count. None
            where nobody says.
        processes: that shared the run.
        stage_s: seconds per stage.
        backend: of the optimizer.
        seed: of the run.
        machine: see `machine_facts`.
        versions: see `versions`.
        config: every setting under its dotted key.
    """

    frozen: FrozenCheck
    mask: str
    density: float
    iterations: int
    resumed_at: int = 0
    wall_s: float
    training_s: float | None = None
    processes: int = 1
    stage_s: Mapping[str, float]
    backend: str
    seed: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    config: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """What report.json says of the run, in plain types."""
        facts = {part.name: getattr(self, part.name) for part in fields(self)}
        frozen = facts.pop("frozen").to_dict()
        facts["stage_s"] = {name: round(seconds, 2) for name, seconds in self.stage_s.items()}
        facts["wall_s"] = round(self.wall_s, 2)
        facts["training_s"] = None if self.training_s is None else round(self.training_s, 2)
        return {**frozen, **facts}

    def conditions(self) -> list[tuple[str, str]]:
        """What the figures hold for."""
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.stage_s.items())
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        resumed = f" (the wall time is from {self.resumed_at} on)" if self.resumed_at else ""
        return [
            ("Machine", f"{self.machine['device_name']}, {self.machine['cores']} cores"),
            ("Threads", str(self.machine["threads"])),
            ("Optimizer backend", self.backend),
            ("Seed", str(self.seed)),
            ("Iterations", f"{self.iterations}{resumed}"),
            ("Mask", f"{self.mask}, density {self.density:.4g}"),
            ("Wall time", f"{self.wall_s:.0f} s ({stages})"),
            ("Software", packages),
        ]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything an erasure is judged by.

    Attributes:
        run: what was done.
        headline: one plain sentence: what became of what was to be forgotten.
        gone: whether it is gone; None where nobody looked.
        kept_sentence: one plain sentence: what became of the rest; "" where nobody looked.
        kept: whether the rest is kept, likewise.
        figures: what report.json says before the run, in plain types.
        tables: of the page, the most important one first.
        conditions: what the figures hold for.
        terms: what words of the page mean.
    """

    run: RunFacts
    headline: str
    gone: bool | None
    kept_sentence: str
    kept: bool | None
    figures: Mapping[str, Any]
    tables: Sequence[Table]
    conditions: Sequence[tuple[str, str]]
    terms: Terms

    def to_dict(self) -> dict[str, Any]:
        """report.json: the figures first, then the conditions they hold under."""
        summary = f"{self.headline} {self.kept_sentence}".strip()
        return {"summary": summary, **self.figures, **self.run.to_dict()}

    def write(self, folder: Path, pictures: Sequence[Picture]) -> None:
        """Write report.json and the self-contained report.html into `folder`."""
        frozen = self.run.frozen
        proof = frozen.sentence() if frozen.frozen else "No parameter was frozen: the mask is full."
        sentences = [Sentence(proof, "muted", bool(frozen.frozen_changed))]
        if self.kept_sentence:
            sentences.insert(0, Sentence(self.kept_sentence, bad=self.kept is False))
        sections: list[Section] = [
            *pictures[:1],
            *self.tables,
            *pictures[1:],
            self.terms,
            Table("Conditions", self.conditions, ("", "")),
        ]
        headline = Sentence(self.headline, bad=self.gone is False)
        write_page(folder / "report.html", headline, sentences, sections)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / "report.json", text + "\n")


def class_report(
    run: RunFacts,
    class_names: Sequence[str],
    teacher: TeacherFigures,
    after: Evaluation,
    curve: Sequence[CurvePoint] = (),
    teacher_ships: bool = False,
    images: str | None = None,
) -> Report:
    """The report on a class that was to be forgotten.

    It is gone if at most 2 % of the images asked for it are recognised as it, and the others are
    kept if they lost at most .03 of accuracy against the teacher.

    Args:
        run: what was done.
        class_names: of the model, by index.
        teacher: the teacher's many-step figures.
        after: the erased model's figures.
        curve: accuracies during the run.
        teacher_ships: the teacher's figures came with the model and were not measured here.
        images: the real images that the run was trained on, in words; None where it needs none.
    """
    forget, name = after.forget, class_names[after.forget]
    override = None if after.override is None else class_names[after.override]
    before = {
        "forget_accuracy_before": teacher.forget_accuracy(forget),
        "keep_accuracy_teacher": teacher.keep_accuracy(forget),
    }
    forgot, kept = before.values()
    gone_now = after.forget_accuracy <= GONE
    kept_now = after.keep_accuracy >= kept - KEPT
    recognised = Hits(round(after.forget_accuracy * after.forget_count), after.forget_count)
    asked = "images recognised as the class asked for"
    rows = [
        (f"{name}: images recognised as {name}", percent(forgot), percent(after.forget_accuracy)),
        (f"Other classes: {asked}", percent(kept), percent(after.keep_accuracy)),
        (
            "Other classes: Fréchet distance to real images (lower is closer)",
            _number(teacher.frechet(forget)),
            _number(after.frechet),
        ),
        ("Network evaluations per image", str(teacher.steps), str(after.steps)),
        (
            "Images judged",
            f"{teacher.per_class * len(class_names):,}",
            f"{after.forget_count + after.keep_count:,}",
        ),
    ]
    if after.override_accuracy is not None:
        replaced = percent(after.override_accuracy)
        rows.insert(1, (f"{name}: images recognised as {override}", "", replaced))
    shipped = " (shipped with the model, not measured in this run)" if teacher_ships else ""
    original = f"{teacher.steps} DDIM steps, seed {teacher.seed}{shipped}"
    return Report(
        run=run,
        headline=gone_sentence(name, gone_now, recognised, name),
        gone=gone_now,
        kept_sentence=kept_sentence(
            f"The other {len(class_names) - 1} classes "
            f"{'are kept' if kept_now else 'have suffered'}",
            f"{percent(after.keep_accuracy)} of {after.keep_count:,}",
            "images are recognised as the class asked for",
            percent(kept),
        ),
        kept=kept_now,
        figures={
            **before,
            "forget_accuracy_after": after.forget_accuracy,
            "keep_accuracy_after": after.keep_accuracy,
            "frechet_teacher": teacher.frechet(forget),
            "frechet_after": after.frechet,
            "classes": list(class_names),
            "forget": name,
            "override": override,
            "after": after.to_dict(),
            "teacher": teacher.to_dict(),
            "teacher_figures": "shipped with the model" if teacher_ships else "measured",
            "images": images,
            "curve": [asdict(point) for point in curve],
        },
        tables=[Table("Figures", rows)],
        conditions=[
            *run.conditions(),
            *([] if images is None else [("Trained on", images)]),
            ("Original model's images", original),
            ("Erased model's images", f"{after.sampler}, seed {after.seed}"),
        ],
        terms=Terms("class", {"judged": True, "steps": after.steps, "evaluations": teacher.steps}),
    )


def gone_sentence(what: str, gone: bool, seen: Hits, name: str, note: str = "") -> str:
    """One plain sentence: what became of what was to be forgotten, which is seen as `name`."""
    return (
        f"{what} {'is gone' if gone else 'is not gone'}: {seen.hits} of {seen.count:,} images "
        f"asked for it are recognised as {name}{note}."
    )


def kept_sentence(verdict: str, share: str, recognised: str, before: str) -> str:
    """One plain sentence: what became of the rest, and what share was recognised before."""
    return f"{verdict}: {share} {recognised} ({before} for the model it started from)."


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
