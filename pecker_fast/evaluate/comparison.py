"""Several runs side by side: one row each, and which of their figures cannot be compared.

A figure that nobody took stays empty, it is never 0. Figures that rest on other judges, other
numbers of images or other real images are marked, because FID and Fréchet distances of fewer
images are larger, and another judge has other errors. What a run started from was trained as well:
its steps and seconds stand before the run's own, since only their sum compares.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.line_chart import seconds

__all__ = ["COLUMNS", "Column", "Comparison", "Run", "Start"]

MISSING = "–"
UNKNOWN = "?"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was trained before a run began: the first of two stages."""

    path: str  # of the networks that were given, in words
    iterations: int | None = None  # in all; None where one of them does not say
    wall_s: float | None = None  # seconds of training in all, likewise
    device: str | None = None  # what it was trained on, or None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run and its figures, or a model or images that were only judged."""

    name: str  # short, and its own among the runs that are compared
    path: str  # where it was read from
    method: str  # how the class was made to be forgotten, in words
    forget: str | None = None  # name of the forgotten class, or None
    override: str | None = None  # name of the class in its place, or None
    mask: str | None = None  # saliency, random, full or given; None without training
    density: float | None = None  # share of the entries that could change, or None
    frozen: int | None = None  # entries that could not, or None
    frozen_changed: int | None = None  # those of them whose bits changed, or None
    iterations: int | None = None  # of the training; None without
    # Iterations of the whole run; more than `iterations` while it goes on.
    planned: int | None = None
    wall_s: float | None = None  # seconds of training, judging left out, or None
    # What was trained before, or None where the run started from the original. It is not in
    # `iterations`, `wall_s` and `curve`.
    start: Start | None = None
    # Seconds that finding the mask took, which is not in `wall_s`, or None.
    mask_s: float | None = None
    device: str | None = None  # what it was trained on, or None
    seed: int | None = None  # of the training, or None
    evaluation: Evaluation | None = None  # the classifier's figures, or None
    fidelity: FidelityFigures | None = None  # FID and its like, or None
    curve: tuple[CurvePoint, ...] = ()  # measurements during the run
    versions: str = ""  # of the packages that took the figures, in words


@dataclass(frozen=True)
class Basis:
    """What a group of figures rests on: equal words, comparable figures."""

    title: str
    words: Callable[[Run], str | None]


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    key: str  # its name in the CSV file
    title: str  # its heading on the page
    figure: str = ""  # where the value is in a `Run`, with dots; "" = under its key
    words: Callable[[Any], str] = str  # the value on the page
    basis: Basis | None = None  # what makes its figures comparable, or None where they always are
    is_text: bool = False  # words, not numbers
    # Where the same figure is of what a run started from, which the page adds to the run's own; ""
    # = nowhere.
    before: str = ""
    interval: str = ""  # where its 95 % interval is, which the page shows beside; "" = nowhere

    def value(self, run: Run) -> Any:
        """In plain types; None where it is missing."""
        return look_up(run, self.figure or self.key)

    def shown(self, run: Run) -> str:
        """What the page says of a run."""
        value = self.value(run)
        if value is None:
            return MISSING
        if self.interval and (bounds := look_up(run, self.interval)) is not None:
            low, high = map(self.words, bounds)
            return f"{self.words(value)} ({low} to {high})"
        if not self.before or run.start is None:
            return self.words(value)
        before = look_up(run, self.before)
        return f"{UNKNOWN if before is None else self.words(before)} + {self.words(value)}"


def look_up(run: Run | CurvePoint, figure: str) -> Any:
    """A figure of a run, e.g. "fidelity.fid"; None where a part of the way is missing."""
    value: Any = run
    for name in figure.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _classifier_basis(run: Run) -> str | None:
    found = run.evaluation
    if found is None:
        return None
    return (
        f"{found.judge or 'an unnamed judge'}, {found.forget_count:,} images of the class, "
        f"{found.keep_count:,} of the others"
    )


def _frechet_basis(run: Run) -> str | None:
    found = run.evaluation
    if found is None or found.frechet is None:
        return None
    return (
        f"{found.judge or 'an unnamed judge'}, {found.keep_count:,} images against "
        f"{found.frechet_real_count or 0:,} real ones ({found.frechet_source or 'unnamed'})"
    )


def _score_basis(run: Run, real: str = "") -> str | None:
    found = run.fidelity
    if found is None:
        return None
    kind = "published" if found.weights_published else f"other ({found.weights_sha256[:12]})"
    layer = "" if found.layer == "2048" else f", {found.layer} features"
    return f"{found.count:,} images{real}, {kind} Inception weights{layer}"


def _fidelity_basis(run: Run) -> str | None:
    found = run.fidelity
    if found is None:
        return None
    digest = found.real_digest[:12] or "unnamed"
    return _score_basis(run, f" against {found.real_count:,} real ones ({digest})")


def _time_basis(run: Run) -> str | None:
    if run.wall_s is None:
        return None
    device = run.device or "unknown"
    before = device if run.start is None else run.start.device or "unknown"
    return device if before == device else f"{before}, then {device}"


JUDGED = Basis("UA, P(class), entropy, others kept", _classifier_basis)
FRECHET = Basis("Fréchet distance", _frechet_basis)
SCORE = Basis("Inception score", _score_basis)
FIDELITY = Basis("FID, KID, precision, recall", _fidelity_basis)
TIME = Basis("Wall time", _time_basis)


def _digits(number: int, factor: float = 1.0) -> Callable[[Any], str]:
    return lambda value: f"{factor * value:,.{number}f}"


_COUNT = "{:,}".format

COLUMNS: tuple[Column, ...] = (
    Column("run", "Run", "name", is_text=True),
    Column("method", "Method", is_text=True),
    Column("mask", "Mask", is_text=True),
    Column("density", "Density", words="{:.3g}".format),
    Column("frozen_changed", "Frozen entries changed", words=_COUNT),
    Column("iterations", "Steps", words=_COUNT, before="start.iterations"),
    Column("wall_s", "Wall time", "", seconds, TIME, before="start.wall_s"),
    Column("unlearning_accuracy", "UA, %", "evaluation.unlearning_accuracy", _digits(2, 100),
           JUDGED, interval="evaluation.unlearned.interval"),
    Column("forget_probability", "P(class)", "evaluation.forget_probability", _digits(4), JUDGED),
    Column("forget_entropy", "Entropy, nats", "evaluation.forget_entropy", _digits(3), JUDGED),
    Column("keep_accuracy", "Others kept, %", "evaluation.keep_accuracy", _digits(2, 100), JUDGED,
           interval="evaluation.kept.interval"),
    Column("frechet", "Fréchet", "evaluation.frechet", _digits(2), FRECHET,
           interval="evaluation.frechet_interval"),
    Column("fid", "FID", "fidelity.fid", _digits(2), FIDELITY, interval="fidelity.fid_interval"),
    Column("kid", "KID × 1000", "fidelity.kid", _digits(3, 1000), FIDELITY),
    Column("inception_score", "IS", "fidelity.inception_score", _digits(2), SCORE),
    Column("precision", "Precision", "fidelity.precision", _digits(3), FIDELITY),
    Column("recall", "Recall", "fidelity.recall", _digits(3), FIDELITY),
    Column("sampler", "Sampler", "evaluation.sampler", is_text=True),
    Column("forget_count", "Images of the class", "evaluation.forget_count", _COUNT),
    Column("keep_count", "Of the others", "evaluation.keep_count", _COUNT),
    Column("fidelity_count", "For FID", "fidelity.count", _COUNT),
)  # fmt: skip
"""The table. The CSV file has these and `_CSV_ONLY`."""

_CSV_ONLY = {
    "path": "path",
    "forget": "forget",
    "override": "override",
    "override_accuracy": "evaluation.override_accuracy",
    "frozen": "frozen",
    "planned_iterations": "planned",
    "start": "start.path",
    "start_iterations": "start.iterations",
    "start_wall_s": "start.wall_s",
    "mask_s": "mask_s",
    "device": "device",
    "seed": "seed",
    "sampler_steps": "evaluation.steps",
    "sampler_guidance": "evaluation.guidance",
    "sampler_seed": "evaluation.seed",
    "judge": "evaluation.judge",
    "frechet_real_count": "evaluation.frechet_real_count",
    "frechet_source": "evaluation.frechet_source",
    "kid_std": "fidelity.kid_std",
    "inception_score_std": "fidelity.inception_score_std",
    "real_count": "fidelity.real_count",
    "real_source": "fidelity.real_source",
    "real_digest": "fidelity.real_digest",
    "inception_weights_sha256": "fidelity.weights_sha256",
    "versions": "versions",
    **{
        f"{column.key}_{end}": f"{column.interval}.{end}"
        for column in COLUMNS if column.interval for end in ("low", "high")
    },
}  # fmt: skip
_CURVE_INTERVALS = {
    f"{name}_accuracy_{end}": f"{kind}.interval.{end}"
    for name, kind in (("forget", "forgotten"), ("keep", "kept")) for end in ("low", "high")
}  # fmt: skip
_CURVE = ("iteration", "wall_s", "forget_accuracy", "keep_accuracy", "frechet", "forget_count",
          "keep_count")  # fmt: skip


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
        """Those in which at least one run has a figure."""
        return [c for c in COLUMNS if any(c.value(run) is not None for run in self.runs)]

    def rows(self) -> list[list[tuple[str, str]]]:
        """A row per run; in `columns` the value in words, and the letter of its basis or ""."""
        letters = {column.basis: self._letters(column.basis) for column in COLUMNS if column.basis}

        def mark(run: Run, column: Column) -> str:
            if column.basis is None or column.value(run) is None:
                return ""
            return letters[column.basis].get(column.basis.words(run) or "", "")

        return [[(c.shown(run), mark(run, c)) for c in self.columns] for run in self.runs]

    def notes(self) -> dict[str, dict[str, str]]:
        """Figures that must not be compared where their letters differ: basis -> words -> letter.

        Bases of which there is one alone are left out.
        """
        bases = dict.fromkeys(column.basis for column in COLUMNS if column.basis)
        found = {basis.title: self._letters(basis) for basis in bases}
        return {title: letters for title, letters in found.items() if letters}

    def unfinished(self) -> list[str]:
        """Runs that have not come to their end, a sentence each."""
        return [
            f"{run.name}: {run.iterations:,} of {run.planned:,} steps are done."
            for run in self.runs
            if run.iterations is not None and run.planned and run.iterations < run.planned
        ]

    def to_csv(self) -> str:
        """Every figure with what it rests on, unrounded; empty where it is missing."""
        figures = {column.key: column.figure or column.key for column in COLUMNS} | _CSV_ONLY
        rows = [[look_up(run, figure) for figure in figures.values()] for run in self.runs]
        return _csv([*figures], rows)

    def curves_csv(self) -> str:
        """The measurements during the runs, one row each; steps and seconds are the run's own."""
        before = ("start_iterations", "start_wall_s")
        rows = [
            [run.name, *(getattr(point, key) for key in _CURVE),
             *(look_up(run, _CSV_ONLY[key]) for key in before),
             *(look_up(point, figure) for figure in _CURVE_INTERVALS.values())]
            for run in self.runs for point in run.curve
        ]  # fmt: skip
        return _csv(["run", *_CURVE, *before, *_CURVE_INTERVALS], rows)

    def _letters(self, basis: Basis) -> dict[str, str]:
        """A letter for each thing that figures rest on; none where all rest on the same."""
        words = dict.fromkeys(filter(None, (basis.words(run) for run in self.runs)))
        if len(words) < 2:
            return {}
        return {text: _letter(index) for index, text in enumerate(words)}


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(value) for value in row] for row in rows)
    return file.getvalue()


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is marked as text: 'text."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"
