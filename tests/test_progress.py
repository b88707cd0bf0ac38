"""What is said while work goes on: a bar on a terminal, a line for every tenth elsewhere."""

import io
import sys

import pytest

from pecker_fast import progress
from pecker_fast.progress import Progress, each, note, quiet


@pytest.fixture(autouse=True)
def _shown(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)  # of a test of several processes before


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(capsys, total, initial, step):
    with Progress("work", total, initial=initial, patience=0.0) as shown:
        shown.describe({"loss": "0.5"})
        for _ in range(initial, total, step):
            shown.update(step)
    assert shown.n == total
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    return err.splitlines()


@pytest.mark.parametrize(
    ("total", "initial", "step", "count", "first"),
    [(3, 0, 1, 3, 1), (25, 0, 1, 10, 3), (8, 0, 4, 2, 4), (40, 20, 1, 5, 24)],
)
def test_a_line_for_every_tenth(capsys, total, initial, step, count, first):
    lines = lines_of(capsys, total, initial, step)
    assert len(lines) == count and lines[0].startswith(f"work: {first:,} of {total:,}, ")
    assert lines[-1] == f"work: {total:,} of {total:,}, 0 s, loss 0.5"


def test_work_of_seconds_is_worth_no_line(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    seen = []
    for item in each(range(20), "work"):
        seen.append(item)
        now[0] += 1.0  # ten seconds are over with the tenth
    assert seen == list(range(20))
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"work: {n} of 20" for n in (10, 12, 14, 16, 18, 20)]


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("work", 3, patience=0.0) as shown:
        shown.describe({"loss": "0.5"})
        shown.update(3)
    said = sys.stderr.getvalue()
    assert "\r" in said and "work" in said and "3/3" in said and "loss=0.5" in said


@pytest.mark.parametrize("way", ["no title", "quiet", "variable"])
@pytest.mark.parametrize("where", [io.StringIO, Terminal])
def test_nothing_is_said(monkeypatch, way, where):
    monkeypatch.setattr(sys, "stderr", where())
    title = None if way == "no title" else "work"
    if way == "variable":
        monkeypatch.setenv("TQDM_DISABLE", "1")

    def work():
        with Progress(title, 3, patience=0.0) as shown:
            shown.update(3)
        assert list(each(iter("abc"), title, 3)) == ["a", "b", "c"]

    if way == "quiet":
        with quiet():
            work()
            note("hidden")
    else:
        work()
    assert sys.stderr.getvalue() == ""


def test_notes_are_said_and_safe(capsys):
    with quiet():
        note("hidden")
    note("a\x1b[2Jb")
    assert capsys.readouterr().err == "a\\x1b[2Jb\n"
