"""The comparison as files: one self-contained page and two tables.

comparison.html    table and plots; no script, nothing is loaded from elsewhere
comparison.csv     a row per run: every figure, unrounded, with what it rests on
curves.csv         the measurements during the runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pecker_fast.evaluate.comparison import COLUMNS, UNKNOWN, Comparison, Run, look_up
from pecker_fast.evaluate.line_chart import Axis, Series, look, seconds, svg_chart, swatch
from pecker_fast.evaluate.page import Charts, Section, Sentence, Table, Terms, marked, write_page
from pecker_fast.files import write_text

__all__ = ["FILES", "write_comparison"]

FILES = ("comparison.html", "comparison.csv", "curves.csv")

_NUMBER = Axis("")
_PERCENT = Axis("", "{:.3g} %".format, top=100.0)
# The axis, and where its value is in a run and in a point of its curve.
_ACROSS = (
    (Axis("Training time", seconds, bases=(1, 60, 3600)), "wall_s", "wall_s"),
    (Axis("Steps", "{:,.0f}".format), "iterations", "iteration"),
)


@dataclass(frozen=True)
class Panel:
    """One quantity against time and against steps.

    Attributes:
        title: heading.
        caption: what to look at; {forget} stands for the class.
        part: of a `Run` that holds the quantity at its end.
        figure: its name there and in a point of a curve.
        counted: what of a point says how many images are behind it.
        axis: upwards.
    """

    title: str
    caption: str
    part: str
    figure: str
    counted: str = "keep_count"
    axis: Axis = _NUMBER

    @property
    def scale(self) -> float:
        """Shares are shown in percent."""
        return 100.0 if self.axis is _PERCENT else 1.0


_PANELS = (
    Panel(
        "Forgetting",
        "Images asked for {forget} that the classifier takes for {forget}; lower is better.",
        "evaluation", "forget_accuracy", "forget_count", _PERCENT,
    ),
    Panel(
        "Keeping the other classes",
        "Images asked for another class that the classifier takes for that class; higher is "
        "better.",
        "evaluation", "keep_accuracy", axis=_PERCENT,
    ),
    Panel(
        "FID of the other classes",
        "Against real images of the same classes; lower is better.",
        "fidelity", "fid",
    ),
    Panel(
        "Fréchet distance of the other classes, in the classifier's features",
        "Lower is better.",
        "evaluation", "frechet",
    ),
)  # fmt: skip


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `FILES` into `folder`, which is there; each whole or not at all."""
    runs, notes = comparison.runs, comparison.notes()
    stages = _stages(runs)
    warnings = [*comparison.unfinished(), *stages]
    if notes:
        warnings.insert(
            0,
            "Figures with different letters rest on different judges, images, numbers of images or "
            "machines and cannot be compared; what the letters mean is below the table.",
        )
    swatches = [swatch(number) for number in range(len(runs))]
    rows = [
        [swatch + marked(*cells[0]), *(marked(*cell) for cell in cells[1:])]
        for swatch, cells in zip(swatches, comparison.rows(), strict=True)
    ]
    table = Table(
        "",
        rows,
        [column.title for column in COLUMNS],
        Markup(
            "A dash: nobody measured it. All figures with what they rest on are in "
            '<a href="comparison.csv">comparison.csv</a>, those during the runs in '
            '<a href="curves.csv">curves.csv</a>.'
        ),
        numbers=frozenset(i for i, column in enumerate(COLUMNS) if not column.is_text),
    )
    sections: list[Section] = [table]
    if notes:
        rests = [
            (note.title, mark, words) for note in notes for words, mark in note.letters.items()
        ]
        sections.append(Table("What the letters mean", rests, ("Figures", "Letter", "Rest on")))
    panels = _panels(comparison)
    if panels:
        legend = [(run.name, mark) for run, mark in zip(runs, swatches, strict=True)]
        sections += [Charts("During the runs", _reading(bool(notes), bool(stages)), (), legend)]
    sections += [*panels, Terms("comparison")]
    sentences = [Sentence(warning, "warn") for warning in warnings]
    write_page(folder / FILES[0], Sentence(_title(comparison)), sentences, sections)
    write_text(folder / FILES[1], comparison.to_csv())
    write_text(folder / FILES[2], comparison.curves_csv())


def _title(comparison: Comparison) -> str:
    count = len(comparison.runs)
    runs = "one run" if count == 1 else f"{count} runs"
    return f"Forgetting {comparison.forget}: {runs}" if comparison.forget else f"Comparing {runs}"


def _stages(runs: Sequence[Run]) -> list[str]:
    """Which runs began where an earlier one ended, and what to compare; a sentence each."""
    staged = [(run.name, run.start) for run in runs if run.start is not None]
    if not staged:
        return []
    listed = "; ".join(f"{name} started from {start.path}" for name, start in staged)
    first = (
        f"A + in steps and wall time: {listed}. The first figure is of what it started from, the "
        "second its own; compare their sum with other rows."
    )
    return [first] + [
        f"{name}: {start.path} does not say how long it was trained ({UNKNOWN}), so the sum is "
        "unknown, and its lines begin at 0."
        for name, start in staged
        if start.iterations is None or start.wall_s is None
    ]


def _reading(marks: bool, stages: bool) -> str:
    """How to read the plots."""
    apart = ", and do not compare where their letters differ there" if marks else ""
    moved = (
        " The line of a run that began where another ended is moved to the right by that one's "
        "training."
    )
    return (
        f"Diamonds are the table's figures{apart}. A line across is a model that was not trained "
        f"in these runs.{moved if stages else ''}"
    )


def _panels(comparison: Comparison) -> list[Charts]:
    """The plots of what at least one run has."""
    found = []
    for panel in _PANELS:
        charts = []
        for axis, of_run, of_point in _ACROSS:
            series = [
                _series(panel, run, number, of_run, of_point)
                for number, run in enumerate(comparison.runs)
            ]
            if any(part.xs() for part in series):
                title = f"{panel.title}: {axis.title.lower()}"
                charts.append(svg_chart(title, axis, panel.axis, series))
        if charts:
            caption = panel.caption.replace("{forget}", comparison.forget or "the class")
            note = f"{caption} {_counts(panel, comparison.runs)}".strip()
            found.append(Charts(panel.title, note, charts))
    return found


def _series(panel: Panel, run: Run, number: int, of_run: str, of_point: str) -> Series:
    """A run's line, from where what it started from ended."""
    begin = look_up(run, f"start.{of_run}") or 0
    points = [(getattr(point, of_point), getattr(point, panel.figure)) for point in run.curve]
    at_end = look_up(run, f"{panel.part}.{panel.figure}")
    value = None if at_end is None else panel.scale * at_end
    length = getattr(run, of_run)
    return Series(
        run.name,
        look(number),
        [(begin + x, panel.scale * y) for x, y in points if x is not None and y is not None],
        None if length is None or value is None else (begin + length, value),
        value if run.iterations is None else None,
    )


def _counts(panel: Panel, runs: Sequence[Run]) -> str:
    """How many images are behind the points of the lines."""
    points = [point for run in runs for point in run.curve]
    shown = [point for point in points if getattr(point, panel.figure) is not None]
    counts = sorted({getattr(point, panel.counted) for point in shown} - {0})
    words = ""
    if counts:
        most = f" to {counts[-1]:,}" if len(counts) > 1 else ""
        by_run = ", by run" if most else ""
        words = f"Lines: measured during the run, {counts[0]:,}{most} images a point{by_run}."
    if shown and panel.axis is not _PERCENT:
        words += (
            " A distance of fewer images is larger: compare lines of equal numbers of images, and "
            "diamonds with diamonds."
        )
    return words.strip()
