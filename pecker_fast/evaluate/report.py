"""report.json and report.html: what happened, in one sentence, in tables, and in pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.intervals import Interval, percent
from pecker_fast.evaluate.page import Picture, Sentence, Table, write_page
from pecker_fast.evaluate.recognition import Outcome
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.files import write_text
from pecker_fast.masks.verify import FrozenCheck

__all__ = ["Report", "RunFacts", "class_report", "concept_report"]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The part of a report that is about the run, in the order of report.json."""

    frozen: FrozenCheck  # the bit-by-bit comparison of the generator before and after
    mask: str  # saliency, random, full or given
    density: float  # share of the generator's entries that were allowed to change
    iterations: int  # of the training
    resumed_at: int = 0  # iteration at which this process took the run up; `wall_s` starts there
    wall_s: float  # seconds from start to report
    # Seconds of training over all starts of the run; judging does not count. None where nobody
    # says.
    training_s: float | None = None
    processes: int = 1  # that shared the run
    stage_s: Mapping[str, float]  # seconds per stage
    backend: str  # of the optimizer
    seed: int  # of the run
    machine: Mapping[str, Any]  # see `machine_facts`
    versions: Mapping[str, str]  # see `versions`
    config: Mapping[str, Any]  # every setting under its dotted key

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
    """Everything an erasure is judged by."""

    run: RunFacts  # what was done
    headline: str  # one plain sentence: what became of what was to be forgotten
    figures: Mapping[str, Any]  # what report.json says before the run, in plain types
    tables: Sequence[Table]  # of the page, the most important one first
    conditions: Sequence[tuple[str, str]]  # what the figures hold for
    gone: bool | None = None  # whether it is gone; None: nobody looked, or at too few images
    kept_sentence: str = ""  # in plain words what became of the rest; "" where nobody looked
    kept: bool | None = None  # whether the rest is kept, as `gone`

    @classmethod
    def of(
        cls,
        run: RunFacts,
        what: str,
        outcome: Outcome,
        *,
        rows: Sequence[Sequence[str]] = (),
        note: str = "",
        tables: Sequence[Table] = (),
        **rest: Any,
    ) -> Report:
        """Report what a classifier saw.

        `rows` are more of the table of figures, `note` is a further sentence on what became of the
        rest, and `rest` the remaining attributes.
        """
        columns, every = outcome.columns, [*outcome.rows(), *rows]
        filled = [[*row, *[""] * (len(columns) - len(row))] for row in every]
        found = [Table("Figures", filled, columns)]
        if instead := outcome.seen_as_rows():
            title = f"What is drawn where {outcome.name} is asked for"
            found.append(Table(title, instead, ("Recognised as", *columns[1:])))
        if classes := outcome.class_rows():
            found.append(Table("Classes that are to be kept", classes, columns))
        return cls(
            run=run,
            headline=outcome.headline(what),
            gone=outcome.gone,
            kept_sentence=f"{outcome.kept_sentence()} {note}".strip(),
            kept=outcome.kept,
            tables=[*found, *tables],
            **rest,
        )

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
        sections: list[Picture | Table] = [*pictures[:1], *self.tables, *pictures[1:]]
        sections.append(Table("Conditions", self.conditions, ("Setting", "Value")))
        headline = Sentence(self.headline, bad=self.gone is False)
        write_page(folder / "report.html", headline, sentences, sections)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / "report.json", text + "\n")


def class_report(
    run: RunFacts,
    class_names: Sequence[str],
    teacher: ClassFigures,
    after: Evaluation,
    curve: Sequence[CurvePoint] = (),
    teacher_ships: bool = False,
    images: str | None = None,
    real: ClassFigures | None = None,
) -> Report:
    """The report on a class that was to be forgotten.

    `teacher` has many-step figures, which may have come with the model (`teacher_ships`); `images`
    are the real ones that the run was trained on, in words; `real` has the figures of real test
    images.
    """
    forget, name = after.forget, class_names[after.forget]
    override = None if after.override is None else class_names[after.override]
    before = teacher.recognition(class_names, forget)
    floor = [] if real is None else [real]
    distances = (teacher.frechet(forget), after.frechet)
    outcome = Outcome(
        "class", name, override, before, after.recognition(class_names),
        None if real is None else real.recognition(class_names, forget),
        second=None if after.second is None else after.second.forgotten,
        others=(f"The other {len(class_names) - 1} classes", True),
    )  # fmt: skip
    shipped = " (shipped with the model, not measured in this run)" if teacher_ships else ""
    original = f"{teacher.steps} DDIM steps, seed {teacher.seed}{shipped}"
    return Report.of(
        run,
        name,
        outcome,
        rows=[
            (
                "Other classes: Fréchet distance to real images (lower is closer)",
                _distance(distances[0]),
                _distance(distances[1], after.frechet_interval),
                *(_distance(figures.frechet(forget)) for figures in floor),
            ),
            (
                "The same in an earlier layer, which sees more of the variety within a class",
                _distance(teacher.early(forget)),
                _distance(after.frechet_early, after.frechet_early_interval),
                *(_distance(figures.early(forget)) for figures in floor),
            ),
            ("Network evaluations per image", str(teacher.steps), str(after.steps)),
            *_second_rows(name, after),
        ],
        note=_farther(*distances),
        figures={
            "forget_accuracy_before": teacher.forget_accuracy(forget),
            "keep_accuracy_teacher": teacher.keep_accuracy(forget),
            "forget_accuracy_after": after.forget_accuracy,
            "keep_accuracy_after": after.keep_accuracy,
            **{
                f"{kind}_interval_{when}": list(share.interval)
                for when, seen in (("before", before), ("after", outcome.after))
                for kind, share in seen.groups.items()
            },
            **outcome.verdicts(),
            "frechet_teacher": distances[0],
            "frechet_after": distances[1],
            "classes": list(class_names),
            "forget": name,
            "override": override,
            "after": after.to_dict(),
            "teacher": teacher.to_dict(),
            "teacher_figures": "shipped with the model" if teacher_ships else "measured",
            "images": images,
            "real": None if real is None else real.to_dict(),
            "curve": [point.to_dict() for point in curve],
        },
        conditions=[
            *run.conditions(),
            *([("Judge", after.judge)] if after.judge else []),
            *([] if images is None else [("Trained on", images)]),
            ("Original model's images", original),
            ("Erased model's images", f"{after.sampler}, seed {after.seed}"),
            *(("Real test images", f"{each.per_class} a class: {each.source}") for each in floor),
        ],
    )


def _distance(value: float | None, interval: Interval | None = None) -> str:
    if value is None:
        return "not measured"
    words = "{:.2f}".format if value >= 0.1 else "{:.2g}".format
    bounds = "" if interval is None else f" ({words(interval.low)} to {words(interval.high)})"
    return f"{words(value)}{bounds}"


def _second_rows(name: str, after: Evaluation) -> list[tuple[str, str, str]]:
    """What another judge says, of the erased model's images alone."""
    if (second := after.second) is None:
        return []
    return [
        (f"Second judge: {name} recognised as {name}", "", second.forgotten.counts),
        ("Second judge: all others recognised as what was asked for", "", second.kept.counts),
    ]


def _farther(before: float | None, after: float | None) -> str:
    """That the images are recognised and yet worse, where they are."""
    if before is None or after is None or after <= 1.2 * before:
        return ""
    return (
        f"As a set, their images lie {after / before:.1f} times as far from real ones as the "
        f"original model's (Fréchet distance {after:.2f}, before {before:.2f})."
    )


def concept_report(
    run: RunFacts,
    *,
    concept: str,
    override: str,
    model: str,
    recipe: str,
    mask_digest: str,
    patch_bytes: int,
    unet_bytes: int,
    samplers: tuple[Sampler, Sampler],
    outcome: Outcome | None = None,
) -> Report:
    """Report on a concept that was to be forgotten.

    `override` is "" for nothing; `samplers` drew the original and the erased model's images;
    `outcome` is None where nobody judged what the prompts name.
    """
    frozen, (before, after) = run.frozen, samplers
    evaluations = [str(_evaluations(sampler)) for sampler in samplers]
    patch = f"{_megabytes(patch_bytes)} ({percent(patch_bytes / unet_bytes)})"
    rows = [
        ("Network evaluations per image", *evaluations),
        (
            "Size: the U-Net's file, and the patch that turns it into the erased one",
            _megabytes(unet_bytes),
            patch,
        ),
        (
            "Salient parameters that changed",
            "",
            f"{frozen.salient_changed:,} of {frozen.salient:,}",
        ),
        ("Frozen parameters that changed", "", f"{frozen.frozen_changed:,} of {frozen.frozen:,}"),
    ]
    about: dict[str, Any] = {
        "figures": {
            "concept": concept,
            "override": override,
            "figures": None if outcome is None else outcome.to_dict(),
            "patch_bytes": patch_bytes,
            "unet_bytes": unet_bytes,
            "patch_share": round(patch_bytes / unet_bytes, 4),
            "model": model,
            "recipe": recipe,
            "mask_digest": mask_digest,
            "sampling": {
                "before": _facts_of(before),
                "after": _facts_of(after),
                "seed": before.seed,
            },
        },
        "conditions": [
            ("Model", model),
            ("Recipe", recipe),
            ("Erased, in favour of", f"{concept} -> {override or 'nothing'}"),
            *run.conditions(),
            ("Mask digest", mask_digest),
            ("Original model's images", f"{before.describe()}, seed {before.seed}"),
            ("Erased model's images", f"{after.describe()}, seed {after.seed}"),
        ],
    }
    name = concept.removeprefix("a ").removeprefix("an ")
    name = name[:1].upper() + name[1:]
    if outcome is not None:
        return Report.of(run, name, outcome, rows=rows, **about)
    headline = f"{name} was erased in favour of {override or 'nothing'}; no classifier has judged "
    tables = [Table("Figures", rows)]
    return Report(run=run, headline=f"{headline}the images.", tables=tables, **about)


def _evaluations(sampler: Sampler) -> int:
    """Network evaluations for an image; guidance doubles them."""
    return sampler.steps * (1 if sampler.guidance in (None, 1) else 2)


def _facts_of(sampler: Sampler) -> dict[str, Any]:
    evaluations = {"steps": sampler.steps, "evaluations": _evaluations(sampler)}
    if sampler.steps == 1:
        return {**evaluations, "t_init": sampler.t_init}
    return {**evaluations, "guidance": sampler.guidance, "negative": sampler.negative}


def _megabytes(size: int) -> str:
    """1_720_000 -> '1.72 MB'."""
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"
