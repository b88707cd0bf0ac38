"""Line charts: what is drawn where, ticks, the legend, and SVG that follows its page."""

from xml.etree import ElementTree

import pytest

from pecker_fast.evaluate.class_pictures import plot_accuracy
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.line_chart import (
    Axis,
    Series,
    look,
    plot_chart,
    seconds,
    svg_chart,
    swatch,
)
from pecker_fast.evaluate.reference import ClassFigures

PLAIN = Axis("steps", "{:g}".format)


def run(number, points, **more):
    return Series(f"run {number}", look(number), points, **more)


def test_lines_ends_and_levels_are_drawn_where_their_figures_are(figures):
    series = [run(0, [(0, 0), (50, 1), (100, 2)]), run(1, [], end=(80, 1.5)), run(2, [], level=1.2)]
    svg_chart("t", PLAIN, PLAIN, series)
    (ax,) = figures[0].axes
    line, diamond, level = ax.lines
    assert list(line.get_xdata()) == [0, 50, 100] and list(line.get_ydata()) == [0, 1, 2]
    assert (diamond.get_marker(), list(diamond.get_xdata())) == ("D", [80])
    assert list(level.get_ydata()) == [1.2, 1.2]
    assert ax.get_xlim() == (0, 100) and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 2


def test_a_short_run_beside_a_long_one_can_be_seen(figures):
    svg_chart("t", PLAIN, PLAIN, [run(0, [(0, 1), (50_000, 1)]), run(1, [(0, 1), (1000, 1)])])
    (ax,) = figures[0].axes
    start, middle, end = (ax.transData.transform((x, 0))[0] for x in (0, 1000, 50_000))
    assert middle - start > (end - start) / 10  # 1/50 on a linear axis
    assert len([tick for tick in ax.get_xticks() if 0 <= tick <= 50_000]) <= 6


def test_svg_keeps_text_as_text_and_takes_the_colours_of_its_page():
    hostile = Axis("<b>$x$ & y", "{:g}".format)
    svg = str(svg_chart('a "title"', hostile, PLAIN, [run(0, [(0, 1), (1, 1)])]))
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "title"'
    assert "<b>$x$ & y" in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "var(--c0)" in svg and look(0)["color"] not in svg
    assert svg == str(svg_chart('a "title"', hostile, PLAIN, [run(0, [(0, 1), (1, 1)])]))


def test_no_two_of_16_runs_look_alike():
    assert len({str(look(n)) for n in range(32)}) == 16  # every 16th looks like the first
    assert len({swatch(n) for n in range(16)}) == 16


def test_nothing_to_show_and_nothing_but_zeros(figures, tmp_path):
    plot_chart(tmp_path / "p.png", PLAIN, PLAIN, [run(0, []), run(1, [(0, 0)])])
    assert figures[0].axes[0].get_ylim()[1] > 0


def test_the_legend_says_how_the_images_of_each_line_were_drawn(figures, tmp_path):
    teacher = ClassFigures(50, 0, 500, (0.94, 0.96, 0.99), (), 200, 190)
    points = [CurvePoint(0, 0.9, 0.5), CurvePoint(10, 0.0, 0.8)]
    plot_accuracy(
        tmp_path / "a.png", points, "$star_{", teacher, 2, "original, 50 steps", "one step"
    )
    (ax,) = figures[0].axes
    legend = ax.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    looks = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    drawn = {(line.get_color(), line.get_linestyle()): line.get_ydata()[-1] for line in ax.lines}
    assert {label: drawn[look] for label, look in zip(labels, looks, strict=True)} == {
        "other classes: original, 50 steps": pytest.approx(95),
        "other classes: one step": 80,
        "$star_{: original, 50 steps": 99,
        "$star_{: one step": 0,
    }
    assert not any(text.get_parse_math() for text in legend.get_texts())


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 s"), (0.25, "0.25 s"), (60, "1 min"), (80, "80 s"), (90, "1.5 min"), (9180, "2.55 h")],
)
def test_seconds(value, words):
    assert seconds(value) == words
