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

from pecker_fast.evaluate.comparison import UNKNOWN, Comparison, Run, look_up
from pecker_fast.evaluate.line_chart import TIME_UNITS, Axis, Series, look, svg_chart, swatch
from pecker_fast.evaluate.page import Charts, Section, Sentence, Table, Terms, marked, write_page
from pecker_fast.files import write_text

__all__ = ["FILES", "write_comparison"]

FILES = ("comparison.html", "comparison.csv", "curves.csv")

_READING = (
    "Diamonds are the table's figures; do not compare where their letters differ there. A line "
    "across is a model that was not trained in these runs. The line of a run that began where "
    "another ended is moved to the right by that one's training."
)
_NUMBER = Axis("")
_PERCENT = Axis("", lambda share: f"{100 * share:.3g} %", top=1.0)
_FEWER = "Of fewer images it is larger: compare diamonds with diamonds."


@dataclass(frozen=True)
class Panel:
    """One quantity against time and against steps."""

    title: str
    caption: str  # what to look at; {forget} stands for the class
    figure: str  # where a `Run` holds the quantity at its end, with dots
    counted: str = "keep_count"  # what of a point says how many images are behind it
    axis: Axis = _NUMBER  # upwards
    share: str = ""  # what of a point has the interval of the quantity, or ""

    @property
    def name(self) -> str:
        """The quantity's name in a curve."""
        return self.figure.rpartition(".")[2]


_PANELS = (
    Panel(
        "Forgetting",
        "Images asked for {forget} that the classifier takes for {forget}; lower is better.",
        "evaluation.forget_accuracy", "forget_count", _PERCENT, "forgotten",
    ),
    Panel(
        "Keeping the other classes",
        "Images asked for another class that the classifier takes for that class; higher is "
        "better.",
        "evaluation.keep_accuracy", axis=_PERCENT, share="kept",
    ),
    Panel(
        "Fréchet distance of the other classes, in the classifier's features",
        f"Lower is better. {_FEWER}", "evaluation.frechet",
    ),
)  # fmt: skip


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `FILES` into `folder`, which is there; each whole or not at all."""
    runs, notes = comparison.runs, comparison.notes()
    warnings = [*comparison.unfinished(), *_stages(runs)]
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
        [column.title for column in comparison.columns],
        Markup(
            "In brackets: 95 % intervals. A dash: nobody measured it. All figures with what they "
            "rest on are in "
            '<a href="comparison.csv">comparison.csv</a>, those during the runs in '
            '<a href="curves.csv">curves.csv</a>.'
        ),
        numbers=frozenset(i for i, c in enumerate(comparison.columns) if not c.is_text),
    )
    sections: list[Section] = [table]
    if notes:
        rests = [
            (title, letter, words)
            for title, letters in notes.items()
            for words, letter in letters.items()
        ]
        sections.append(Table("What the letters mean", rests, ("Figures", "Letter", "Rest on")))
    panels = _panels(comparison)
    if panels:
        legend = [(run.name, mark) for run, mark in zip(runs, swatches, strict=True)]
        sections.append(Charts("During the runs", _READING, (), legend))
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
    unknown = [name for name, start in staged if None in (start.iterations, start.wall_s)]
    explained = (
        f"A + in steps and wall time: {listed}. The first figure is of what it started from, the "
        "second its own; compare their sum with other rows."
    )
    return [explained] + [
        f"{name}: nobody knows how long what it started from was trained ({UNKNOWN}): the sum is "
        "unknown, and its lines begin at 0."
        for name in unknown
    ]


def _panels(comparison: Comparison) -> list[Charts]:
    """The plots of what at least one run has."""
    found = []
    for panel in _PANELS:
        charts = []
        for axis, unit, of_run, of_point in _across(comparison.runs):
            series = [
                _series(panel, run, number, unit, of_run, of_point)
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


def _across(runs: Sequence[Run]) -> list[tuple[Axis, float, str, str]]:
    """The axes, what a unit of each is, and where its value is in a run and in a curve's point."""
    longest = max((look_up(run, "start.wall_s") or 0) + (run.wall_s or 0) for run in runs)
    unit, name = next(found for found in TIME_UNITS if longest >= 1.5 * found[0] or found[0] == 1)
    time, steps = Axis(f"Training time, {name}"), Axis("Steps", "{:,.0f}".format)
    return [(time, unit, "wall_s", "wall_s"), (steps, 1, "iterations", "iteration")]


def _series(panel: Panel, run: Run, number: int, unit: float, of_run: str, of_point: str) -> Series:
    """A run's line, from where what it started from ended."""
    begin = look_up(run, f"start.{of_run}") or 0
    length, value = look_up(run, of_run), look_up(run, panel.figure)
    points = [
        ((begin + x) / unit, y, look_up(point, f"{panel.share}.interval") if panel.share else None)
        for point in run.curve
        if (x := getattr(point, of_point)) is not None
        and (y := getattr(point, panel.name)) is not None
    ]
    bounds = [interval for _, _, interval in points if interval is not None]
    return Series(
        run.name,
        look(number),
        [(x, y) for x, y, _ in points],
        None if length is None or value is None else ((begin + length) / unit, value),
        value if run.iterations is None else None,
        bounds if len(bounds) == len(points) else (),
    )


def _counts(panel: Panel, runs: Sequence[Run]) -> str:
    """How many images are behind the points of the lines."""
    every = [point for run in runs for point in run.curve]
    points = [point for point in every if getattr(point, panel.name) is not None]
    counts = sorted({getattr(point, panel.counted) for point in points} - {0})
    if not counts:
        return ""
    most = f" to {counts[-1]:,}" if len(counts) > 1 else ""
    by_run = ", by run" if most else ""
    shades = "; shades: their 95 % intervals" if panel.share else ""
    return f"Lines: measured during the run, {counts[0]:,}{most} images a point{by_run}{shades}."
