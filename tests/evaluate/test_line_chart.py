"""Line charts: what is drawn where, and what the legend says."""

import io

import pytest
from PIL import Image

from pecker_fast.evaluate.class_pictures import plot_accuracy
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.line_chart import Series, line_chart
from pecker_fast.evaluate.reference import ClassFigures


def run(name, points=(), **more):
    return Series(name, {"color": "C0"}, points, **more)


def test_lines_ends_and_levels_are_drawn_where_their_figures_are(figures):
    series = [
        run("a", [(0, 0), (50, 1), (100, 2)], bounds=[(0, 1), (1, 2), (1, 3)]),
        run("_b", end=(80, 1.5)), run(r"$\frac$", level=1.2), run("nothing"),
    ]  # fmt: skip
    png = line_chart("y", {"steps": series, "time": series})
    assert min(Image.open(io.BytesIO(png)).size) > 300
    for ax in figures[0].axes:
        line, _, diamond, level, _ = ax.lines
        assert list(line.get_xdata()) == [0, 50, 100] and list(line.get_ydata()) == [0, 1, 2]
        assert (diamond.get_marker(), list(diamond.get_xdata())) == ("D", [80])
        assert list(level.get_ydata()) == [1.2, 1.2]
        assert ax.get_xlim()[0] == ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 2
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", " _b", r"$\frac$", "nothing"]
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_the_legend_says_how_the_images_of_each_line_were_drawn(figures):
    teacher = ClassFigures(50, 0, 500, (0.94, 0.96, 0.99), (), 200, 190)
    points = [CurvePoint(0, 0.9, 0.5), CurvePoint(10, 0.0, 0.8)]
    plot_accuracy(points, "$star_{", teacher, 2, "original, 50 steps", "one step")
    (legend,), (ax,) = figures[0].legends, figures[0].axes
    labels = [text.get_text() for text in legend.get_texts()]
    looks = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    drawn = {(line.get_color(), line.get_linestyle()): line.get_ydata()[-1] for line in ax.lines}
    assert {label: drawn[look] for label, look in zip(labels, looks, strict=True)} == {
        "other classes: original, 50 steps": pytest.approx(95),
        "other classes: one step": 80,
        "$star_{: original, 50 steps": 99,
        "$star_{: one step": 0,
    }
