"""Line charts of runs: figures over steps or over time, as a PNG or as inline SVG.

Lines are hard to tell apart by colour alone, so every run has a dash pattern of its own too. In the
SVG colours are the page's variables: they follow it from light to dark.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pecker_fast.evaluate.drawing import MUTED_COLOR, PAGE_COLOR, RULE_COLOR, TEXT_COLOR, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "TIME_UNITS",
    "Axis",
    "Series",
    "draw_chart",
    "look",
    "plot_chart",
    "seconds",
    "svg_chart",
    "swatch",
]

_RUNS = ("#0060a8", "#c84c00", "#007a5a", "#a8447f", "#2b8fd0", "#8a6d00", "#5b4bb3", "#555555")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
_VARIABLES = {
    TEXT_COLOR: "--text",
    MUTED_COLOR: "--muted",
    RULE_COLOR: "--rule",
    "#9e9e9e": "--strong",
    PAGE_COLOR: "--page",
    **{color: f"--c{index}" for index, color in enumerate(_RUNS)},
}
_LOGARITHMIC = 20  # from this ratio of the longest run to the shortest on, the short one vanishes
TIME_UNITS = ((3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str  # of the run; its label in a legend
    look: dict[str, Any]  # colour and dashes, see `look`
    # (x, y) in the order of x, joined by a line; may be empty.
    points: Sequence[tuple[float, float]] = ()
    # (x, y) of a figure that stands apart from the line, as a diamond, or None.
    end: tuple[float, float] | None = None
    level: float | None = None  # y of a run that has no x, as a line across, or None
    # For each of `points` the interval that its y may lie in, shaded; or empty.
    bounds: Sequence[tuple[float, float]] = ()

    def xs(self) -> list[float]:
        """All x."""
        return [x for x, _ in self.points] + ([] if self.end is None else [self.end[0]])

    def ys(self) -> list[float]:
        """All y."""
        alone = [self.level, None if self.end is None else self.end[1]]
        return [y for _, y in self.points] + [y for y in alone if y is not None]


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    title: str  # what is counted
    words: Callable[[float], str] = "{:,.4g}".format  # a value in words, at the ticks
    top: float | None = None  # where it ends; None: at the largest value


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of the run of this number; after 16 they begin again."""
    dashes = _DASHES[(number + number // len(_DASHES)) % len(_DASHES)]
    return {"color": _RUNS[number % len(_RUNS)], "linestyle": dashes}


def draw_chart(ax: Axes, x: Axis, y: Axis, series: Sequence[Series]) -> None:
    """All series that have something to show; y begins at 0.

    Where the longest run is 20 times the shortest, x grows with the logarithm.
    """
    from matplotlib.ticker import AsinhLocator, FuncFormatter, MaxNLocator

    for part in series:
        # matplotlib leaves a label out of the legend that begins with an underscore.
        label = f" {part.name}" if part.name.startswith("_") else part.name
        style: dict[str, Any] = {**part.look, "label": label}
        if part.level is not None:
            ax.axhline(part.level, linewidth=1.2, alpha=0.8, **style)
        if part.points:
            xs, ys = zip(*part.points, strict=True)
            ax.plot(xs, ys, marker="o", markersize=3, clip_on=False, **style)
            if part.bounds:
                low, high = zip(*part.bounds, strict=True)
                color = part.look["color"]
                ax.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
        if part.end is not None:
            style |= {"markeredgecolor": PAGE_COLOR, "markeredgewidth": 0.8, "clip_on": False}
            ax.plot(*part.end, marker="D", markersize=6.5, zorder=3, **style)
    ends = [max(part.xs()) for part in series if part.xs() and max(part.xs()) > 0]
    length = max(ends, default=1.0)
    ax.set_xlim(0, length)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if ends and length / min(ends) >= _LOGARITHMIC:
        # Every run begins at 0, which has no logarithm: asinh is linear up to the first point.
        start = min(value for part in series for value in part.xs() if value > 0)
        ax.set_xscale("asinh", linear_width=start)
        ax.xaxis.set_major_locator(AsinhLocator(start, numticks=6))
    heights = [value for part in series for value in part.ys()]
    top = y.top or max(heights, default=1.0) or 1.0
    ax.set_ylim(0, top * 1.04)  # so that the highest mark is not cut
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for axis, words in ((ax.xaxis, x.words), (ax.yaxis, y.words)):
        axis.set_major_formatter(FuncFormatter(lambda value, _, words=words: words(value)))
    ax.set_xlabel(x.title)
    ax.set_ylabel(y.title)
    ax.grid(axis="y", linewidth=0.8)


def plot_chart(path: str | os.PathLike[str], x: Axis, y: Axis, series: Sequence[Series]) -> None:
    """Write a PNG of `draw_chart` with a legend above it."""
    with picture(path, 7.2, 3.9) as figure:
        ax = figure.subplots()
        draw_chart(ax, x, y, series)
        # Outside, because the curves end in every corner of the axes.
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, fontsize=8.5)


def svg_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """An <svg> of `draw_chart`; `title` is what a reader who cannot see it is told."""
    buffer = io.StringIO()
    with picture(buffer, 4.4, 2.8) as figure:
        draw_chart(figure.subplots(), x, y, series)
    return _inline(buffer, Markup('role="img" class="chart" aria-label="{}"').format(title))


def swatch(number: int) -> Markup:
    """A piece of a run's line, for a legend on the page."""
    from matplotlib.lines import Line2D

    buffer = io.StringIO()
    with picture(buffer, 0.4, 0.12, layout=None) as figure:
        figure.add_artist(Line2D([0.03, 0.97], [0.5, 0.5], linewidth=2, **look(number)))
    return _inline(buffer, Markup('class="swatch" aria-hidden="true"'))


def seconds(value: float) -> str:
    """80 -> '80 s', 5400 -> '1.5 h'."""
    for length, unit in TIME_UNITS[:-1]:
        if value >= 1.5 * length or (value >= length and value % length == 0):
            return f"{_short(value / length)} {unit}"
    return f"{_short(value)} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _inline(buffer: io.StringIO, attributes: Markup) -> Markup:
    """What matplotlib wrote, to stand in a page: no prolog, no ids twice, the page's colours."""
    text = buffer.getvalue()
    text = re.sub('<g id="[^"]*"', "<g", text[text.index("<svg") + 4 :])
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return Markup(f"<svg {attributes}{text}")
