"""Line charts of runs: figures over steps or over time, in matplotlib's own style.

matplotlib's figure objects are used directly: no pyplot, so no window system and no global state.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Series", "line_chart"]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str  # of the run; its label in a legend
    look: Mapping[str, Any]  # matplotlib's colour and line style
    # (x, y) in the order of x, joined by a line; may be empty.
    points: Sequence[tuple[float, float]] = ()
    # For each of `points` the interval that its y may lie in, shaded; or empty.
    bounds: Sequence[tuple[float, float]] = ()
    # (x, y) of a figure that stands apart from the line, as a diamond, or None.
    end: tuple[float, float] | None = None
    level: float | None = None  # y of a run that has no x, as a line across, or None


def line_chart(y: str, panels: Mapping[str, Sequence[Series]], top: float | None = None) -> bytes:
    """Draw the same figures over one quantity or several, side by side beneath one legend.

    Args:
        y: what the figures are.
        panels: what a chart goes over -> its lines; each has the same ones.
        top: the largest figure that there can be, or None. The smallest is 0.

    Returns:
        A PNG file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A $ in a name is a $. Letters that the font lacks become boxes; a warning for each would bury
    # everything else.
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(max(7.2, 4.6 * len(panels)), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (x, series) in zip(axes, panels.items(), strict=True):
            _draw(ax, series)
            ax.set_xlabel(x)
            ax.grid(axis="y", alpha=0.4)
        # A little more, so that the highest mark is not cut.
        axes[0].set_ylim(0, None if top is None else 1.04 * top)
        axes[0].set_ylabel(y)
        # Outside, because the curves end in every corner of the axes.
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize="small")
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def _draw(ax: Axes, series: Sequence[Series]) -> None:
    for part in series:
        # matplotlib leaves a label out of the legend that begins with an underscore.
        name = f" {part.name}" if part.name.startswith("_") else part.name
        if part.level is not None:
            ax.axhline(part.level, label=name, **part.look)
            continue
        xs, ys = zip(*part.points, strict=True) if part.points else ((), ())
        ax.plot(xs, ys, marker=".", label=name, **part.look)
        if part.bounds:
            low, high = zip(*part.bounds, strict=True)
            ax.fill_between(xs, low, high, color=part.look["color"], alpha=0.15, linewidth=0)
        if part.end is not None:
            ax.plot(*part.end, marker="D", color=part.look["color"])
    ax.set_xlim(left=0)
