"""The comparison as files: one self-contained page and two tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pecker_fast.evaluate.comparison import UNKNOWN, Comparison, Run, look_up
from pecker_fast.evaluate.line_chart import Series, line_chart
from pecker_fast.evaluate.page import Picture, Sentence, Table, write_page
from pecker_fast.files import write_text

__all__ = ["FILES", "write_comparison"]

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


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `FILES` into `folder`, which is there; each whole or not at all."""
    runs, notes = comparison.runs, comparison.notes()
    warnings = [*comparison.unfinished(), *_stages(runs)]
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


def _stages(runs: Sequence[Run]) -> list[str]:
    """Say which runs began where an earlier one ended, and what to compare."""
    staged = [f"{run.name} started from {run.start.path}" for run in runs if run.start is not None]
    explained = (
        f"A + in steps and wall time: {'; '.join(staged)}. The first figure is of what it started "
        "from, the second its own; compare their sum with other rows. Where the first is "
        f"{UNKNOWN}, nobody knows it, and the run's lines begin at 0."
    )
    return [explained] if staged else []


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
