"""Line charts as inline SVG: they take the page's colours, light or dark, and its width.

Marks are hard to tell apart by colour alone, so every series has a dash pattern of its own too. A
point's figures are its tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Axis", "Series", "chart", "seconds", "swatch"]

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 26, 10, 44  # RIGHT: half of the longest label of an axis
COLOURS = 8
"""Classes c0, c1, ... that the page's style sheet colours; further series begin again."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_LOGARITHMIC = 20  # from this ratio of the longest run to the shortest on, the short one vanishes


@dataclass(frozen=True)
class Series:
    """One run in a chart.

    Attributes:
        number: decides colour and dashes.
        name: of the run.
        points: (x, y) in the order of x, joined by a line; may be empty.
        end: (x, y) of a figure that stands apart from the line, as a diamond, or None.
        level: y of a run that has no x, as a line across, or None.
    """

    number: int
    name: str
    points: Sequence[tuple[float, float]] = ()
    end: tuple[float, float] | None = None
    level: float | None = None

    def xs(self) -> list[float]:
        """All x."""
        return [x for x, _ in self.points] + ([] if self.end is None else [self.end[0]])

    def ys(self) -> list[float]:
        """All y."""
        alone = [self.end[1]] if self.end is not None else []
        return [y for _, y in self.points] + alone + ([] if self.level is None else [self.level])


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        title: with the unit.
        words: a value in words, on ticks and in tooltips.
        top: where it ends; None: at the largest value.
        bases: units between ticks are 1, 2 or 5 times a power of ten of the largest of these that
            is below the length of the axis: (1,) for numbers, (1, 60, 3600) for seconds.
    """

    title: str
    words: Callable[[float], str]
    top: float | None = None
    bases: Sequence[float] = (1.0,)


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """An <svg> of all series that have something to show; y begins at 0.

    Where the longest run is 20 times the shortest, x grows with the logarithm.
    """
    shown = [part for part in series if part.ys()]
    place_x, ticks_x = _horizontal(x, shown)
    top = y.top or max((value for part in shown for value in part.ys()), default=1.0) or 1.0
    ticks_y = _ticks(top, y.bases)
    top *= 1.04  # so that the highest mark is not cut

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top

    parts = [_frame(x, y, ticks_x, ticks_y, place_x, place_y)]
    parts += [_draw(part, x, y, place_x, place_y) for part in shown]
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">{}</svg>'
    ).format(WIDTH, HEIGHT, title, Markup("").join(parts))


def swatch(number: int) -> Markup:
    """A piece of a series' line, for a legend."""
    return Markup(
        '<svg viewBox="0 0 34 12" class="swatch" aria-hidden="true">'
        '<line x1="1" y1="6" x2="33" y2="6" class="line {}"{}/></svg>'
    ).format(_colour(number), _dashes(number))


def seconds(value: float) -> str:
    """80 -> '80 s', 5400 -> '1.5 h'."""
    for unit, length in (("h", 3600), ("min", 60)):
        if value >= 1.5 * length or (value >= length and value % length == 0):
            return f"{_short(value / length)} {unit}"
    return f"{_short(value)} s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw(
    series: Series,
    x: Axis,
    y: Axis,
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> Markup:
    colour, dashes = _colour(series.number), _dashes(series.number)
    parts = []
    if series.level is not None:
        height = place_y(series.level)
        parts.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" class="line level {}"{}>'
                "<title>{}: {}</title></line>"
            ).format(
                LEFT, WIDTH - RIGHT, height, height, colour, dashes, series.name,
                y.words(series.level),
            )
        )  # fmt: skip
    if len(series.points) > 1:
        line = " ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in series.points)
        parts.append(
            Markup('<polyline points="{}" class="line {}"{}/>').format(line, colour, dashes)
        )
    for a, b in series.points:
        parts.append(
            Markup(
                '<circle cx="{:.1f}" cy="{:.1f}" r="2.6" class="dot {}"><title>{}</title></circle>'
            ).format(place_x(a), place_y(b), colour, _tooltip(series, x, y, a, b))
        )
    if series.end is not None:
        a, b = series.end
        across, down = place_x(a), place_y(b)
        corners = ((0, -6), (6, 0), (0, 6), (-6, 0))
        diamond = " ".join(f"{across + right:.1f},{down + under:.1f}" for right, under in corners)
        parts.append(
            Markup('<polygon points="{}" class="end {}"><title>{}</title></polygon>').format(
                diamond, colour, _tooltip(series, x, y, a, b)
            )
        )
    return Markup("").join(parts)


def _tooltip(series: Series, x: Axis, y: Axis, a: float, b: float) -> str:
    return f"{series.name}, {x.words(a)}: {y.words(b)}"


def _frame(
    x: Axis,
    y: Axis,
    ticks_x: Sequence[float],
    ticks_y: Sequence[float],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> Markup:
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in ticks_y:
        height = place_y(tick)
        parts.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" class="grid"/>'
                '<text x="{}" y="{:.1f}" class="tick" text-anchor="end">{}</text>'
            ).format(LEFT, right, height, height, LEFT - 6, height + 4, y.words(tick))
        )
    for tick in ticks_x:
        across = place_x(tick)
        parts.append(
            Markup(
                '<line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}" class="axis"/>'
                '<text x="{:.1f}" y="{}" class="tick" text-anchor="middle">{}</text>'
            ).format(across, across, base, base + 4, across, base + 17, x.words(tick))
        )
    parts.append(
        Markup(
            '<line x1="{}" x2="{}" y1="{}" y2="{}" class="axis"/>'
            '<text x="{}" y="{}" class="title" text-anchor="middle">{}</text>'
        ).format(LEFT, right, base, base, (LEFT + right) / 2, HEIGHT - 8, escape(x.title))
    )
    return Markup("").join(parts)


def _horizontal(
    axis: Axis, series: Sequence[Series]
) -> tuple[Callable[[float], float], Sequence[float]]:
    """Where an x is drawn, and the ticks."""
    ends = [max(part.xs()) for part in series if part.xs() and max(part.xs()) > 0]
    length = max(ends, default=1.0)
    width = WIDTH - LEFT - RIGHT
    if not ends or length / min(ends) < _LOGARITHMIC:
        return lambda value: LEFT + width * value / length, _ticks(length, axis.bases)
    # 0 has no logarithm, but every run begins there: log(1 + x / start) is nearly linear first.
    start = min(value for part in series for value in part.xs() if value > 0)
    whole = math.log1p(length / start)
    ticks = [0.0]
    for tick in _powers(axis.bases, length):
        room = math.log1p(tick / start) - math.log1p(ticks[-1] / start) > whole / 7
        if tick >= start and room:
            ticks.append(tick)
    return lambda value: LEFT + width * math.log1p(value / start) / whole, ticks


def _powers(bases: Sequence[float], length: float) -> list[float]:
    """Each base times powers of ten below the next base, up to `length`."""
    found = []
    for base, following in zip(bases, [*bases[1:], math.inf], strict=True):
        tick = base
        while tick < following and tick <= length:
            found.append(tick)
            tick *= 10
    return found


def _ticks(length: float, bases: Sequence[float]) -> list[float]:
    """0 and round numbers up to `length`, five or six in all."""
    base = max((unit for unit in bases if unit * 2 <= length), default=bases[0])
    rough = length / base / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9)) * base
    return [step * k for k in range(math.floor(length / step * (1 + 1e-9)) + 1)]


def _colour(number: int) -> str:
    return f"c{number % COLOURS}"


def _dashes(number: int) -> Markup:
    pattern = _DASHES[(number + number // len(_DASHES)) % len(_DASHES)]
    return Markup(' stroke-dasharray="{}"').format(pattern) if pattern else Markup("")
