"""Messages are one harmless line of bounded length, whatever goes in."""

import os
import pickle

import pytest

from pecker_fast.errors import FrozenChangedError, PeckerError, printable

HOSTILE = (
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",  # escape sequences of terminals
    "line\r\nover\u2028line\x85\x0b",
    "\u202etxt.exe\u202c",  # the direction of writing, turned
    os.fsdecode(b"caf\xe9.safetensors"),
    "\x00\x9b1m\u200b\ufeff\U000e0041",
)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_has_no_glyph_is_escaped(text):
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    shown.encode("utf-8")
    assert str(PeckerError(f"class {text}: unknown")).isprintable()


def test_ordinary_text_stays_as_it_is():
    for text in ("", "a photo of a cat", "犬 Ünïcode 🐦", "a  b", r"C:\new\x1b"):
        assert printable(text) == text
    assert printable("a\n\tb") == "a  b" and printable("\x1b[1m") == r"\x1b[1m"


@pytest.mark.parametrize("text", ["x" * 10**6, "\x00" * 10**6, "\n" * 10**6, "x" * 601])
def test_the_length_is_bounded(text):
    assert len(printable(text)) == 600 and printable(printable(text)) == printable(text)
    assert len(printable(text, 20)) == 20
    message = str(PeckerError(f"the thing: {text}; the remedy"))
    assert len(message) <= 600
    assert message.startswith("the thing:") and message.endswith("; the remedy")


def test_without_a_limit_nothing_is_left_out():
    assert printable("x\n" * 1000, None) == "x " * 1000


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(FrozenChangedError("two\nlines")))
    assert type(error) is FrozenChangedError and str(error) == "two lines"
