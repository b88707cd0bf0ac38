"""Several runs side by side: one row each, and which of their figures cannot be compared.

A figure that nobody took stays empty, it is never 0. Figures that rest on other judges, other
numbers of images or other real images are marked, because FID and Fréchet distances of fewer
images are larger, and another judge has other errors. What a run started from was trained as well:
its steps and seconds count, since only the sum compares.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.line_chart import Series, line_chart
from pecker_fast.evaluate.page import Picture, Sentence, Table, write_page
from pecker_fast.files import write_text

__all__ = ["COLUMNS", "FILES", "Comparison", "Run", "Start", "write_comparison"]

MISSING = "–"
FILES = ("comparison.html", "comparison.csv", "curves.csv")
_FIGURES = {
    "Forgetting": "forget_accuracy",
    "Keeping the other classes": "keep_accuracy",
    "Fréchet distance of the other classes": "frechet",
}
_READING = (
    "Lines: measured during the run, on the few images a point that curves.csv names; shades: 95 % "
    "intervals. Diamonds are the table's figures, which alone compare: not where their letters "
    "differ, and a distance of fewer images is larger. A line across is a model that was not "
    "trained in these runs. The line of a run that began where another ended is moved to the right "
    "by that one's training."
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was trained before a run began: the first of two stages. None where one is silent."""

    path: str  # of the networks that were given, in words
    iterations: int | None = None  # in all
    wall_s: float | None = None  # seconds of training in all
    device: str | None = None  # what it was trained on


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run and its figures, or a model or images that were only judged; None: nobody says."""

    name: str  # short, and its own among the runs that are compared
    method: str  # how the class was made to be forgotten, in words
    forget: str | None = None  # name of the forgotten class
    mask: str | None = None  # saliency, random, full or given; None without training
    density: float | None = None  # share of the entries that could change
    frozen_changed: int | None = None  # entries that could not and whose bits changed
    iterations: int | None = None  # of the training
    planned: int | None = None  # iterations of the whole run, of which some may be ahead
    wall_s: float | None = None  # seconds of training, judging and finding the mask left out
    # What was trained before, or None where the run started from the original. It is not in
    # `iterations`, `wall_s` and `curve`.
    start: Start | None = None
    device: str | None = None  # what it was trained on
    seed: int | None = None  # of the training
    evaluation: Evaluation | None = None  # the classifier's figures
    fidelity: FidelityFigures | None = None  # FID and its like
    curve: tuple[CurvePoint, ...] = ()  # measurements during the run

    @property
    def devices(self) -> str | None:
        """What both stages were trained on, where the seconds are known."""
        own = self.device or "unknown"
        before = own if self.start is None else self.start.device or "unknown"
        both = own if before == own else f"{before}, then {own}"
        return None if self.wall_s is None else both

    @property
    def total_iterations(self) -> int | None:
        """Iterations of both stages; None where one of them does not say."""
        before = 0 if self.start is None else self.start.iterations
        return None if self.iterations is None or before is None else before + self.iterations

    @property
    def total_wall_s(self) -> float | None:
        """Seconds of training of both stages, likewise."""
        before = 0.0 if self.start is None else self.start.wall_s
        return None if self.wall_s is None or before is None else before + self.wall_s


def look_up(run: Run, figure: str) -> Any:
    """Return a figure of a run, e.g. "fidelity.fid"; None where a part of the way is missing."""
    value: Any = run
    for name in figure.split("."):
        value = None if value is None else getattr(value, name)
    return value


_JUDGED, _FRECHET, _SCORE = "UA, P(class), entropy, others kept", "Fréchet distance", "IS"
_FIDELITY, _TIME = "FID, KID, precision, recall", "Wall time"
_BASES: Mapping[str, tuple[str, ...]] = {
    _JUDGED: ("evaluation.judge", "evaluation.forget_count", "evaluation.keep_count"),
    _FRECHET: ("evaluation.judge", "evaluation.keep_count", "evaluation.frechet_real_count",
               "evaluation.frechet_source"),
    _SCORE: ("fidelity.count", "fidelity.layer", "fidelity.weights_sha256"),
    _FIDELITY: ("fidelity.count", "fidelity.real_count", "fidelity.real_digest", "fidelity.layer",
                "fidelity.weights_sha256"),
    _TIME: ("devices",),
}  # fmt: skip
"""What a group of figures rests on, by dots in a `Run`: where it is equal, they can be compared."""


def rests_on(run: Run, basis: str) -> str:
    """Say what a group of figures of a run rests on; "" where the run has none of them."""
    facts = ((figure.rpartition(".")[2], look_up(run, figure)) for figure in _BASES[basis])
    return ", ".join(
        f"{name} {str(value)[:40] or 'unknown'}".replace("_", " ")
        for name, value in facts
        if value is not None
    )


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    key: str  # its name in the CSV file
    title: str  # its heading on the page; "": it is in the CSV file alone
    figure: str  # where the value is in a `Run`, with dots
    words: Callable[[Any], str] = str  # the value on the page
    basis: str = ""  # in `_BASES`, what makes its figures comparable; "": they always are
    interval: str = ""  # where its 95 % interval is, or ""

    def shown(self, run: Run) -> str:
        """Say on the page what the figure of a run is."""
        if (value := look_up(run, self.figure)) is None:
            return MISSING
        if self.interval and (bounds := look_up(run, self.interval)) is not None:
            low, high = map(self.words, bounds)
            return f"{self.words(value)} ({low} to {high})"
        return self.words(value)


def _digits(number: int, factor: float = 1.0) -> Callable[[Any], str]:
    return lambda value: f"{factor * value:,.{number}f}"


_COUNT = "{:,}".format

COLUMNS: tuple[Column, ...] = (
    Column("run", "Run", "name"),
    Column("method", "Method", "method"),
    Column("forget", "", "forget"),
    Column("mask", "Mask", "mask"),
    Column("density", "Density", "density", "{:.3g}".format),
    Column("frozen_changed", "Frozen entries changed", "frozen_changed", _COUNT),
    Column("seed", "", "seed"),
    Column("start", "", "start.path"),
    Column("start_iterations", "", "start.iterations"),
    Column("iterations", "", "iterations"),
    Column("total_iterations", "Steps", "total_iterations", _COUNT),
    Column("planned_iterations", "", "planned"),
    Column("start_wall_s", "", "start.wall_s"),
    Column("wall_s", "", "wall_s"),
    Column("total_wall_s", "Wall time, min", "total_wall_s", _digits(1, 1 / 60), _TIME),
    Column("unlearning_accuracy", "UA, %", "evaluation.unlearning_accuracy", _digits(2, 100),
           _JUDGED, interval="evaluation.unlearned.interval"),
    Column("forget_probability", "P(class)", "evaluation.forget_probability", _digits(4), _JUDGED),
    Column("forget_entropy", "Entropy, nats", "evaluation.forget_entropy", _digits(3), _JUDGED),
    Column("keep_accuracy", "Others kept, %", "evaluation.keep_accuracy", _digits(2, 100), _JUDGED,
           interval="evaluation.kept.interval"),
    Column("frechet", "Fréchet", "evaluation.frechet", _digits(2), _FRECHET,
           interval="evaluation.frechet_interval"),
    Column("fid", "FID", "fidelity.fid", _digits(2), _FIDELITY, interval="fidelity.fid_interval"),
    Column("kid", "KID × 1000", "fidelity.kid", _digits(3, 1000), _FIDELITY),
    Column("inception_score", "IS", "fidelity.inception_score", _digits(2), _SCORE),
    Column("precision", "Precision", "fidelity.precision", _digits(3), _FIDELITY),
    Column("recall", "Recall", "fidelity.recall", _digits(3), _FIDELITY),
    Column("sampler", "Sampler", "evaluation.sampler"),
    Column("forget_count", "Images of the class", "evaluation.forget_count", _COUNT),
    Column("keep_count", "Of the others", "evaluation.keep_count", _COUNT),
    Column("fidelity_count", "For FID", "fidelity.count", _COUNT),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Runs that forget the same class."""

    runs: Sequence[Run]

    def __post_init__(self) -> None:
        forgotten: dict[str, str] = {}
        for run in self.runs:
            if run.forget is not None:
                forgotten.setdefault(run.forget.lower(), f"{run.name} forgets {run.forget!r}")
        if len(forgotten) > 1:
            raise PeckerError(
                f"compare: runs that forget different classes: {', '.join(forgotten.values())}; "
                "compare runs of one class at a time"
            )

    @property
    def forget(self) -> str | None:
        """Name of the class that all of them forget, or None where none says."""
        return next((run.forget for run in self.runs if run.forget is not None), None)

    @property
    def columns(self) -> list[Column]:
        """Those of the page in which at least one run has a figure."""
        shown = [column for column in COLUMNS if column.title]
        return [c for c in shown if any(look_up(run, c.figure) is not None for run in self.runs)]

    def rows(self) -> list[list[str]]:
        """Return a row per run: in `columns` the value in words, with the letter of its basis."""
        notes = self.notes()

        def cell(run: Run, column: Column) -> str:
            if column.basis not in notes or look_up(run, column.figure) is None:
                return column.shown(run)
            return f"{column.shown(run)} [{notes[column.basis][rests_on(run, column.basis)]}]"

        return [[cell(run, column) for column in self.columns] for run in self.runs]

    def notes(self) -> dict[str, dict[str, str]]:
        """Figures that must not be compared where their letters differ: basis -> words -> letter.

        Bases of which there is one alone are left out.
        """
        found = {}
        for basis in _BASES:
            told = dict.fromkeys(filter(None, (rests_on(run, basis) for run in self.runs)))
            if len(told) > 1:
                found[basis] = {words: _letter(index) for index, words in enumerate(told)}
        return found

    def unfinished(self) -> list[str]:
        """Name runs that have not come to their end, a sentence each."""
        return [
            f"{run.name}: {run.iterations:,} of {run.planned:,} steps are done."
            for run in self.runs
            if run.iterations is not None and run.planned and run.iterations < run.planned
        ]

    def to_csv(self) -> str:
        """Write every figure with what it rests on, unrounded; empty where it is missing."""
        rows = []
        for run in self.runs:
            row = {column.key: look_up(run, column.figure) for column in COLUMNS}
            for column in COLUMNS:
                if column.interval:
                    row[f"{column.key}_interval"] = look_up(run, column.interval)
            rows.append(row | {basis: rests_on(run, basis) for basis in _BASES})
        return _csv(rows)

    def curves_csv(self) -> str:
        """Write the measurements during the runs; steps and seconds are the run's own."""
        rows = [{"run": run.name, **point.to_dict()} for run in self.runs for point in run.curve]
        return _csv(rows)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `FILES` into `folder`, which is there; each whole or not at all."""
    runs, notes = comparison.runs, comparison.notes()
    warnings = comparison.unfinished()
    columns = [column.title for column in comparison.columns]
    told = (
        "In brackets: 95 % intervals. A dash: nobody measured it. All figures with what they rest "
        "on are in comparison.csv, those during the runs in curves.csv."
    )
    sections: list[Picture | Table] = [Table("", comparison.rows(), columns, told)]
    if notes:
        warnings.insert(
            0,
            "Figures with different letters rest on different judges, images, numbers of images or "
            "machines and cannot be compared; what the letters mean is below the table.",
        )
        rests = [
            (title, letter, words)
            for title, letters in notes.items()
            for words, letter in letters.items()
        ]
        sections.append(Table("What the letters mean", rests, ("Figures", "Letter", "Rest on")))
    for title, figure in _FIGURES.items():
        panels = {
            "training time, min": [
                _series(run, k, figure, "wall_s", "wall_s", 1 / 60) for k, run in enumerate(runs)
            ],
            "steps": [
                _series(run, k, figure, "iterations", "iteration") for k, run in enumerate(runs)
            ],
        }
        if any(part.points or part.end for series in panels.values() for part in series):
            share = figure.endswith("accuracy")
            y = "recognised as the class asked for, %" if share else "distance"
            chart = line_chart(y, panels, 100 if share else None)
            sections.append(Picture(chart, title, _READING))
    count = f"{len(runs)} run{'s'[: len(runs) > 1]}"
    headline = f"Forgetting {comparison.forget}: {count}" if comparison.forget else count
    sentences = [Sentence(warning, "warn") for warning in warnings]
    write_page(folder / FILES[0], Sentence(headline), sentences, sections)
    write_text(folder / FILES[1], comparison.to_csv())
    write_text(folder / FILES[2], comparison.curves_csv())


def _series(
    run: Run, number: int, figure: str, of_run: str, of_point: str, unit: float = 1.0
) -> Series:
    """Draw a run's line from where what it started from ended."""
    begin = look_up(run, f"start.{of_run}") or 0
    length, value = getattr(run, of_run), look_up(run, f"evaluation.{figure}")
    scale = 100 if figure.endswith("accuracy") else 1
    share = {"forget_accuracy": "forgotten", "keep_accuracy": "kept"}.get(figure)
    points, bounds = [], []
    for point in run.curve:
        x, y = getattr(point, of_point), getattr(point, figure)
        if x is not None and y is not None:
            points.append(((begin + x) * unit, scale * y))
            counted = None if share is None else getattr(point, share)
            low, high = (y, y) if counted is None else counted.interval
            bounds.append((scale * low, scale * high))
    value = None if value is None else scale * value
    end = None if length is None or value is None else ((begin + length) * unit, value)
    # Runs are hard to tell apart by colour alone.
    look = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number % 4]}
    return Series(run.name, look, points, bounds, end, value if run.iterations is None else None)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    flat = [dict(_flat(row)) for row in rows]
    writer.writerows(flat[:1])  # a mapping is its keys
    writer.writerows(row.values() for row in flat)
    return file.getvalue()


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the cells of a row of a CSV file, two for an interval."""
    for key, value in row.items():
        if key.endswith("_interval"):
            name = key.removesuffix("_interval")
            yield from zip((f"{name}_low", f"{name}_high"), value or (None, None), strict=True)
        elif isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
            yield key, f"'{value}"  # a spreadsheet would take it for a formula
        else:
            yield key, value


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"
