"""Several runs side by side: one row each, and which of their figures cannot be compared.

A figure that nobody took stays empty, it is never 0. Figures that rest on other judges, other
numbers of images or other real images are marked, because FID and Fréchet distances of fewer
images are larger, and another judge has other errors. What a run started from was trained as well:
its steps and seconds stand before the run's own, since only their sum compares.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.line_chart import seconds

__all__ = ["COLUMNS", "Cell", "Column", "Comparison", "Note", "Run", "Start", "curves_csv"]

MISSING = "–"
UNKNOWN = "?"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was trained before a run began: the first of two stages.

    Attributes:
        path: of the networks that were given, in words.
        iterations: in all; None where one of them does not say.
        wall_s: seconds of training in all, likewise.
        device: what it was trained on, or None.
    """

    path: str
    iterations: int | None = None
    wall_s: float | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run and its figures, or a model or images that were only judged.

    Attributes:
        name: short, and its own among the runs that are compared.
        path: where it was read from.
        method: how the class was made to be forgotten, in words.
        forget: name of the forgotten class, or None.
        override: name of the class in its place, or None.
        mask: saliency, random, full or given; None without training.
        density: share of the entries that could change, or None.
        frozen: entries that could not, or None.
        frozen_changed: those of them whose bits changed, or None.
        iterations: of the training; None without.
        planned: iterations of the whole run; more than `iterations` while it goes on.
        wall_s: seconds of training, judging left out, or None.
        start: what was trained before, or None where the run started from the original. It is not
            in `iterations`, `wall_s` and `curve`.
        mask_s: seconds that finding the mask took, which is not in `wall_s`, or None.
        device: what it was trained on, or None.
        seed: of the training, or None.
        evaluation: the classifier's figures, or None.
        fidelity: FID and its like, or None.
        curve: measurements during the run.
        versions: of the packages that took the figures, in words.
    """

    name: str
    path: str
    method: str
    forget: str | None = None
    override: str | None = None
    mask: str | None = None
    density: float | None = None
    frozen: int | None = None
    frozen_changed: int | None = None
    iterations: int | None = None
    planned: int | None = None
    wall_s: float | None = None
    start: Start | None = None
    mask_s: float | None = None
    device: str | None = None
    seed: int | None = None
    evaluation: Evaluation | None = None
    fidelity: FidelityFigures | None = None
    curve: tuple[CurvePoint, ...] = ()
    versions: str = ""


@dataclass(frozen=True)
class Basis:
    """What a group of figures rests on: equal words, comparable figures."""

    title: str
    words: Callable[[Run], str | None]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: its name in the CSV file.
        title: its heading on the page.
        value: of a run, in plain types; None where it is missing.
        words: the value on the page.
        basis: what makes its figures comparable, or None where they always are.
        is_text: words, not numbers.
        before: the same figure of what a run started from, which the page adds to the run's own.
    """

    key: str
    title: str
    value: Callable[[Run], Any]
    words: Callable[[Any], str] = str
    basis: Basis | None = None
    is_text: bool = False
    before: Callable[[Run], Any] | None = None

    def shown(self, run: Run) -> str:
        """What the page says of a run."""
        value = self.value(run)
        if value is None:
            return MISSING
        if self.before is None or run.start is None:
            return self.words(value)
        before = self.before(run)
        return f"{UNKNOWN if before is None else self.words(before)} + {self.words(value)}"


@dataclass(frozen=True)
class Cell:
    """A cell of the page: the value in words, and the letter of what it rests on, or ""."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Note:
    """Figures that must not be compared where their letters differ.

    Attributes:
        title: which figures.
        letters: by what they rest on.
    """

    title: str
    letters: Mapping[str, str]

    def sentence(self) -> str:
        """For a terminal."""
        listed = "; ".join(f"{letter}: {words}" for words, letter in self.letters.items())
        return f"{self.title}: not comparable where letters differ. {listed}."


def _of(part: str, name: str) -> Callable[[Run], Any]:
    """A reader of one figure; None where the whole part is missing."""

    def value(run: Run) -> Any:
        figures = getattr(run, part)
        return None if figures is None else getattr(figures, name)

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


def _score_basis(run: Run) -> str | None:
    found = run.fidelity
    return None if found is None else f"{found.count:,} images, {_inception(found)}"


def _fidelity_basis(run: Run) -> str | None:
    found = run.fidelity
    if found is None:
        return None
    digest = found.real_digest[:12] or "unnamed"
    return (
        f"{found.count:,} images against {found.real_count:,} real ones ({digest}), "
        f"{_inception(found)}"
    )


def _inception(found: FidelityFigures) -> str:
    kind = "published" if found.weights_published else f"other ({found.weights_sha256[:12]})"
    layer = "" if found.layer == "2048" else f", {found.layer} features"
    return f"{kind} Inception weights{layer}"


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


COLUMNS: tuple[Column, ...] = (
    Column("run", "Run", lambda run: run.name, is_text=True),
    Column("method", "Method", lambda run: run.method, is_text=True),
    Column("mask", "Mask", lambda run: run.mask, is_text=True),
    Column("density", "Density", lambda run: run.density, lambda value: f"{value:.3g}"),
    Column("frozen_changed", "Frozen entries changed",
           lambda run: run.frozen_changed if run.frozen else None, lambda value: f"{value:,}"),
    Column("iterations", "Steps", lambda run: run.iterations, lambda value: f"{value:,}",
           before=_of("start", "iterations")),
    Column("wall_s", "Wall time", lambda run: run.wall_s, seconds, TIME,
           before=_of("start", "wall_s")),
    Column("unlearning_accuracy", "UA, %", _of("evaluation", "unlearning_accuracy"),
           _digits(2, 100), JUDGED),
    Column("forget_probability", "P(class)", _of("evaluation", "forget_probability"),
           _digits(4), JUDGED),
    Column("forget_entropy", "Entropy, nats", _of("evaluation", "forget_entropy"),
           _digits(3), JUDGED),
    Column("keep_accuracy", "Others kept, %", _of("evaluation", "keep_accuracy"),
           _digits(2, 100), JUDGED),
    Column("frechet", "Fréchet", _of("evaluation", "frechet"), _digits(2), FRECHET),
    Column("fid", "FID", _of("fidelity", "fid"), _digits(2), FIDELITY),
    Column("kid", "KID × 1000", _of("fidelity", "kid"), _digits(3, 1000), FIDELITY),
    Column("inception_score", "IS", _of("fidelity", "inception_score"), _digits(2), SCORE),
    Column("precision", "Precision", _of("fidelity", "precision"), _digits(3), FIDELITY),
    Column("recall", "Recall", _of("fidelity", "recall"), _digits(3), FIDELITY),
    Column("sampler", "Sampler", _of("evaluation", "sampler"), is_text=True),
    Column("forget_count", "Images of the class", _of("evaluation", "forget_count"),
           lambda value: f"{value:,}"),
    Column("keep_count", "Of the others", _of("evaluation", "keep_count"),
           lambda value: f"{value:,}"),
    Column("fidelity_count", "For FID", _of("fidelity", "count"), lambda value: f"{value:,}"),
)  # fmt: skip
"""The table. The CSV file has these and `_CSV_ONLY`."""

_CSV_ONLY: tuple[Column, ...] = (
    Column("path", "", lambda run: run.path),
    Column("forget", "", lambda run: run.forget),
    Column("override", "", lambda run: run.override),
    Column("override_accuracy", "", _of("evaluation", "override_accuracy")),
    Column("frozen", "", lambda run: run.frozen),
    Column("planned_iterations", "", lambda run: run.planned),
    Column("start", "", _of("start", "path")),
    Column("start_iterations", "", _of("start", "iterations")),
    Column("start_wall_s", "", _of("start", "wall_s")),
    Column("mask_s", "", lambda run: run.mask_s),
    Column("device", "", lambda run: run.device),
    Column("seed", "", lambda run: run.seed),
    Column("sampler_steps", "", _of("evaluation", "steps")),
    Column("sampler_guidance", "", _of("evaluation", "guidance")),
    Column("sampler_seed", "", _of("evaluation", "seed")),
    Column("judge", "", _of("evaluation", "judge")),
    Column("frechet_real_count", "", _of("evaluation", "frechet_real_count")),
    Column("frechet_source", "", _of("evaluation", "frechet_source")),
    Column("kid_std", "", _of("fidelity", "kid_std")),
    Column("inception_score_std", "", _of("fidelity", "inception_score_std")),
    Column("real_count", "", _of("fidelity", "real_count")),
    Column("real_source", "", _of("fidelity", "real_source")),
    Column("real_digest", "", _of("fidelity", "real_digest")),
    Column("inception_weights_sha256", "", _of("fidelity", "weights_sha256")),
    Column("versions", "", lambda run: run.versions),
)


@dataclass(frozen=True)
class Comparison:
    """Runs that forget the same class.

    Attributes:
        runs: in the order of the table.
    """

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

    def rows(self) -> list[list[Cell]]:
        """The table of the page: a row per run, a cell per column."""
        letters = {column.basis: self._letters(column.basis) for column in COLUMNS if column.basis}

        def cell(run: Run, column: Column) -> Cell:
            mark = ""
            if column.basis is not None and column.value(run) is not None:
                mark = letters[column.basis].get(column.basis.words(run) or "", "")
            return Cell(column.shown(run), mark)

        return [[cell(run, column) for column in COLUMNS] for run in self.runs]

    def notes(self) -> list[Note]:
        """Which figures cannot be compared and why."""
        bases = dict.fromkeys(column.basis for column in COLUMNS if column.basis)
        found = [Note(basis.title, self._letters(basis)) for basis in bases]
        return [note for note in found if note.letters]

    def unfinished(self) -> list[str]:
        """Runs that have not come to their end, a sentence each."""
        return [
            f"{run.name}: {run.iterations:,} of {run.planned:,} steps are done."
            for run in self.runs
            if run.iterations is not None and run.planned and run.iterations < run.planned
        ]

    def to_csv(self) -> str:
        """Every figure with what it rests on, unrounded; empty where it is missing."""
        columns = [*COLUMNS, *_CSV_ONLY]
        rows = [[column.value(run) for column in columns] for run in self.runs]
        return _csv([column.key for column in columns], rows)

    def _letters(self, basis: Basis) -> dict[str, str]:
        """A letter for each thing that figures rest on; none where all rest on the same."""
        words = dict.fromkeys(basis.words(run) for run in self.runs)
        words.pop(None, None)
        if len(words) < 2:
            return {}
        return {str(text): _letter(index) for index, text in enumerate(words)}


def curves_csv(runs: Sequence[Run]) -> str:
    """The measurements during the runs, one row each; steps and seconds are the run's own."""
    keys = ["iteration", "wall_s", "forget_accuracy", "keep_accuracy", "frechet", "fid",
            "forget_count", "keep_count"]  # fmt: skip
    before = [_of("start", key) for key in ("iterations", "wall_s")]
    rows = [
        [run.name, *(getattr(point, key) for key in keys), *(value(run) for value in before)]
        for run in runs
        for point in run.curve
    ]
    return _csv(["run", *keys, "start_iterations", "start_wall_s"], rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"
