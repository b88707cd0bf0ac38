"""Where marks and ticks of a line chart are."""

import re
from xml.etree import ElementTree

import pytest

from pecker_fast.evaluate.line_chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Series,
    chart,
    seconds,
    swatch,
)

PLAIN = Axis("steps", lambda value: f"{value:g}")
TIME = Axis("time", seconds, bases=(1, 60, 3600))


def drawn(x, y, *series):
    return ElementTree.fromstring(str(chart("title", x, y, series)))


def ticks(svg, anchor):
    found = [e for e in svg.iter("text") if e.get("text-anchor") == anchor]
    return [e.text for e in found if e.get("class") == "tick"]


def circles(svg):
    return [(float(e.get("cx")), float(e.get("cy"))) for e in svg.iter("circle")]


def test_points_lie_in_proportion():
    svg = drawn(PLAIN, PLAIN, Series(0, "run", [(0, 0), (50, 1), (100, 2)]))
    (x0, y0), (x1, y1), (x2, y2) = circles(svg)
    assert (x0, x2) == (LEFT, WIDTH - RIGHT) and x1 == (x0 + x2) / 2
    assert y0 == HEIGHT - BOTTOM and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert ticks(svg, "middle") == ["0", "20", "40", "60", "80", "100"]
    assert ticks(svg, "end") == ["0", "0.5", "1", "1.5", "2"]
    assert next(svg.iter("circle")).find("title").text == "run, 0: 0"


def test_a_short_run_beside_a_long_one_can_be_seen():
    series = Series(0, "long", [(0, 1), (50_000, 1)]), Series(1, "short", [(0, 1), (1000, 1)])
    svg = drawn(PLAIN, PLAIN, *series)
    (_, _), (long_end, _), (short_start, _), (short_end, _) = circles(svg)
    assert short_start == LEFT and long_end == WIDTH - RIGHT
    assert short_end - LEFT > (long_end - LEFT) / 10  # 1/50 on a linear axis
    assert ticks(svg, "middle") == ["0", "1000", "10000"]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (50, ["0 s", "10 s", "20 s", "30 s", "40 s", "50 s"]),
        (300, ["0 s", "1 min", "2 min", "3 min", "4 min", "5 min"]),
        (9000, ["0 s", "30 min", "1 h", "1.5 h", "2 h", "2.5 h"]),
    ],
)
def test_time_has_ticks_at_whole_units(length, expected):
    assert ticks(drawn(TIME, PLAIN, Series(0, "", [(length, 1)])), "middle") == expected


def test_ends_levels_and_nothing():
    svg = drawn(PLAIN, PLAIN, Series(3, "a", end=(1, 2)), Series(4, "b", level=1.5), Series(5, "c"))
    assert [e.get("class") for e in svg.iter("polygon")] == ["end c3"]
    levels = [e for e in svg.iter("line") if "level" in e.get("class")]
    assert [e.find("title").text for e in levels] == ["b: 1.5"]
    assert "c5" not in str(chart("", PLAIN, PLAIN, [Series(5, "c")]))
    zeros = drawn(PLAIN, PLAIN, Series(0, "zero", [(0, 0)]))
    assert circles(zeros) == [(LEFT, HEIGHT - BOTTOM)]


def test_no_two_of_32_series_look_alike():
    looks = {tuple(re.findall(r'line c\d|dasharray="[\d ]+"', swatch(n))) for n in range(32)}
    assert len(looks) == 16  # colours and dashes: every 16th looks like the first


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 s"), (0.25, "0.25 s"), (60, "1 min"), (80, "80 s"), (90, "1.5 min"), (3600, "1 h"),
     (5000, "83.3 min"), (9180, "2.55 h"), (1_440_000, "400 h")],
)  # fmt: skip
def test_seconds(value, words):
    assert seconds(value) == words
