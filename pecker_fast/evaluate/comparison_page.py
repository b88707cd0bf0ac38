"""The comparison as files: one self-contained page and two tables.

comparison.html    table and plots; no script, nothing is loaded from elsewhere
comparison.csv     a row per run: every figure, unrounded, with what it rests on
curves.csv         the measurements during the runs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from markupsafe import Markup

from pecker_fast.evaluate.comparison import COLUMNS, UNKNOWN, Comparison, Run, curves_csv
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.line_chart import Axis, Series, chart, seconds, swatch
from pecker_fast.files import write_text

__all__ = ["FILES", "write_comparison"]

FILES = ("comparison.html", "comparison.csv", "curves.csv")

During: TypeAlias = Callable[[CurvePoint], float | None]
After: TypeAlias = Callable[[Run], float | None]

_TIME = Axis("Training time", seconds, bases=(1, 60, 3600))
_STEPS = Axis("Steps", lambda value: f"{value:,.0f}")


@dataclass(frozen=True)
class Panel:
    """One quantity against time and against steps.

    Attributes:
        title: heading.
        caption: what to look at.
        charts: two, or one where no run says how long it took.
    """

    title: str
    caption: str
    charts: Sequence[Markup]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `FILES` into `folder`, which is there; each whole or not at all."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pecker_fast.evaluate", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = list(zip(comparison.rows(), map(swatch, range(len(comparison.runs))), strict=True))
    content = environment.get_template("comparison.html").render(
        title=_title(comparison),
        columns=COLUMNS,
        rows=rows,
        notes=comparison.notes(),
        unfinished=comparison.unfinished(),
        stages=_stages(comparison.runs),
        panels=_panels(comparison),
        legend=[(run.name, swatch(index)) for index, run in enumerate(comparison.runs)],
    )
    for name, text in zip(
        FILES, (content, comparison.to_csv(), curves_csv(comparison.runs)), strict=True
    ):
        write_text(folder / name, text)


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
    sentences = [first]
    for name, start in staged:
        if start.iterations is None or start.wall_s is None:
            sentences.append(
                f"{name}: {start.path} does not say how long it was trained ({UNKNOWN}), so the "
                "sum is unknown, and its lines begin at 0."
            )
    return sentences


def _panels(comparison: Comparison) -> list[Panel]:
    """The plots of what at least one run has."""
    runs = comparison.runs
    name = comparison.forget or "the class"
    during = _counts(runs, lambda point: point.forget_count)
    kept_during = _counts(runs, lambda point: point.keep_count)
    fid_during = _distances(runs, lambda point: point.fid)
    frechet_during = _distances(runs, lambda point: point.frechet)
    found = [
        _panel(
            "Forgetting",
            f"Images asked for {name} that the classifier takes for {name}; lower is better. "
            f"{during}",
            Axis("", lambda value: f"{value:.3g} %", top=100.0),
            runs,
            lambda point: 100 * point.forget_accuracy,
            lambda run: None if run.evaluation is None else 100 * run.evaluation.forget_accuracy,
        ),
        _panel(
            "Keeping the other classes",
            "Images asked for another class that the classifier takes for that class; higher is "
            f"better. {kept_during}",
            Axis("", lambda value: f"{value:.3g} %", top=100.0),
            runs,
            lambda point: 100 * point.keep_accuracy,
            lambda run: None if run.evaluation is None else 100 * run.evaluation.keep_accuracy,
        ),
        _panel(
            "FID of the other classes",
            f"Against real images of the same classes; lower is better. {fid_during}",
            Axis("", lambda value: f"{value:.4g}"),
            runs,
            lambda point: point.fid,
            lambda run: None if run.fidelity is None else run.fidelity.fid,
        ),
        _panel(
            "Fréchet distance of the other classes, in the classifier's features",
            f"Lower is better. {frechet_during}",
            Axis("", lambda value: f"{value:.4g}"),
            runs,
            lambda point: point.frechet,
            lambda run: None if run.evaluation is None else run.evaluation.frechet,
        ),
    ]
    return [panel for panel in found if panel.charts]


def _counts(runs: Sequence[Run], count: Callable[[CurvePoint], int]) -> str:
    counts = sorted({count(point) for run in runs for point in run.curve} - {0})
    if not counts:
        return ""
    least, most = f"{counts[0]:,}", f"{counts[-1]:,}"
    if least == most:
        return f"Lines: measured during the run, {least} images a point."
    return f"Lines: measured during the run, {least} to {most} images a point, by run."


def _distances(runs: Sequence[Run], distance: During) -> str:
    if all(distance(point) is None for run in runs for point in run.curve):
        return ""
    counts = _counts(runs, lambda point: 0 if distance(point) is None else point.keep_count)
    return (
        f"{counts} A distance of fewer images is larger: compare lines of equal numbers of images, "
        "and diamonds with diamonds."
    )


def _panel(
    title: str, caption: str, y: Axis, runs: Sequence[Run], during: During, after: After
) -> Panel:
    def of_time(point: CurvePoint) -> float | None:
        return point.wall_s

    def of_steps(point: CurvePoint) -> float | None:
        return point.iteration

    def time_before(run: Run) -> float | None:
        return None if run.start is None else run.start.wall_s

    def steps_before(run: Run) -> float | None:
        return None if run.start is None else run.start.iterations

    against: list[tuple[Axis, During, After, After]] = [
        (_TIME, of_time, lambda run: run.wall_s, time_before),
        (_STEPS, of_steps, lambda run: run.iterations, steps_before),
    ]
    charts = []
    for x, when, ended, before in against:
        series = [
            Series(
                number,
                run.name,
                _line(run, when, during, before(run) or 0),
                _end(run, ended, after, before(run) or 0),
                after(run) if run.iterations is None else None,
            )
            for number, run in enumerate(runs)
        ]
        if any(part.xs() for part in series):
            charts.append(chart(f"{title}: {x.title.lower()}", x, y, series))
    return Panel(title, caption, charts)


def _line(run: Run, when: During, during: During, begin: float) -> list[tuple[float, float]]:
    """A run's points, from where what it started from ended."""
    pairs = [(when(point), during(point)) for point in run.curve]
    return [(begin + x, y) for x, y in pairs if x is not None and y is not None]


def _end(run: Run, ended: After, after: After, begin: float) -> tuple[float, float] | None:
    x, y = ended(run), after(run)
    return None if x is None or y is None else (begin + x, y)
