"""Prompts to draw and judge images of: a CSV file, or a text file with a caption a line.

    prompt,group,label,seed
    a photo of a cat,forget,cat,17

I2P's file and its copies are read as they are: their seeds and guidance scales have other names,
and columns beyond those looked at here are passed over.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_text, shown

__all__ = ["ALL", "GROUPS", "PromptFile", "PromptRow", "read_prompt_file"]

GROUPS = ("forget", "override", "neighbours", "keep")
"""What a prompt is there for. Of a file that does not say, all are in one group `ALL`."""

ALL = "prompts"

_COLUMNS = {
    "prompt": ("prompt",),
    "group": ("group",),
    "label": ("label",),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "guidance": ("guidance", "evaluation_guidance", "sd_guidance_scale"),
    "save_as": ("save_as",),
}
"""What is looked at, and what the column may be called; the first one that is there counts."""

_MOST_BYTES = 64 << 20
_MOST_ROWS = 200_000
_LONGEST = {"prompt": 10_000, "label": 200}  # characters
_MOST_GUIDANCE = 1_000.0
_FILE = re.compile(r"\w[\w. -]{0,150}\.(png|jpg)")


@dataclass(frozen=True)
class PromptRow:
    """One prompt."""

    prompt: str
    group: str = ALL  # what it is there for, one of `GROUPS`, or `ALL`
    # What it names, in the words of whoever judges the images; None where nobody says.
    label: str | None = None
    seed: int | None = None  # of its noise; None in a file without seeds
    guidance: float | None = None  # of its images in many steps; None in a file without
    save_as: str | None = None  # name of its image's file; None: images are numbered


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file."""

    source: str  # the file, as it was given
    rows: Sequence[PromptRow]  # in its order

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that have prompts, what is to be forgotten first."""
        return tuple(g for g in (*GROUPS, ALL) if any(row.group == g for row in self.rows))

    @property
    def digest(self) -> str:
        """SHA-256 of the rows."""
        rows = [astuple(row)[: None if row.save_as else -1] for row in self.rows]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_prompt_file(path: str | os.PathLike[str]) -> PromptFile:
    """Read prompts.

    Args:
        path: FILE.csv with a header and at least a column `prompt`; any other file is text with a
            prompt on each line, such as the captions of COCO.

    Raises:
        PeckerError: the file cannot be read, holds no prompt or too many, or a row of it does not
            fit; the line is named.
    """
    file = Path(path)
    text = read_text(file, _MOST_BYTES).removeprefix("\ufeff")
    if file.suffix.lower() == ".csv":
        rows = list(_rows_of(text, file))
    else:
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
        rows = [PromptRow(_text("prompt", line, file, n)) for n, line in lines if line]
    if not rows:
        raise PeckerError(f"{file}: holds no prompt")
    if len(rows) > _MOST_ROWS:
        raise PeckerError(f"{file}: holds {len(rows):,} prompts, at most {_MOST_ROWS:,} are taken")
    saved = Counter(row.save_as.lower() for row in rows if row.save_as is not None)
    if twice := [name for name, count in saved.items() if count > 1]:
        raise PeckerError(f"{file}: save_as {few(twice)} stands in several rows; name each apart")
    return PromptFile(str(path), rows)


def _rows_of(text: str, file: Path) -> Iterator[PromptRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        places = _places([name.strip().lower() for name in header], file)
        for cells in reader:
            if not cells:
                continue  # an empty line
            if len(cells) != len(header):
                raise PeckerError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells, the header has "
                    f"{len(header)}; put quotes around a prompt with commas"
                )
            yield _row({n: cells[place] for n, place in places.items()}, file, reader.line_num)
    except csv.Error as error:
        raise PeckerError(
            f"{file}, line {reader.line_num}: not valid CSV ({error}); save it as CSV again"
        ) from error


def _places(header: Sequence[str], file: Path) -> dict[str, int]:
    """Which column holds what."""
    places: dict[str, int] = {}
    for name, known in _COLUMNS.items():
        there = [column for column in known if column in header]
        if there and header.count(there[0]) > 1:
            raise PeckerError(f"{file}: has two columns {there[0]!r}; rename one of them")
        if there:
            places[name] = header.index(there[0])
    if "prompt" not in places:
        raise PeckerError(
            f"{file}: has no column 'prompt', its header is {few(header, 6)}; expected CSV such as "
            "prompt,group,label,seed"
        )
    return places


def _row(cells: Mapping[str, str], file: Path, line: int) -> PromptRow:
    where = f"{file}, line {line}"
    group = cells.get("group", ALL).strip().lower()
    if "group" in cells and group not in GROUPS:
        raise PeckerError(f"{where}: group must be one of {', '.join(GROUPS)}, got {shown(group)}")
    label = cells.get("label", "").strip()
    if not label.isprintable():
        raise PeckerError(f"{where}: label {shown(label)} holds characters that are not printable")
    return PromptRow(
        _text("prompt", cells["prompt"].strip(), file, line),
        group,
        _text("label", label, file, line) if label else None,
        _number(cells["seed"], "seed", where, 2**64 - 1) if "seed" in cells else None,
        _guidance(cells["guidance"], where) if "guidance" in cells else None,
        _file_name(cells["save_as"].strip(), where) if "save_as" in cells else None,
    )


def _text(what: str, text: str, file: Path, line: int) -> str:
    if not text or "\0" in text or len(text) > _LONGEST[what]:
        found = f"{len(text):,} characters" if text else "nothing"
        raise PeckerError(
            f"{file}, line {line}: {what} must be a text of 1 to {_LONGEST[what]:,} characters "
            f"without zero bytes, got {found}"
        )
    return text


def _number(cell: str, what: str, where: str, most: int) -> int:
    digits = cell.strip().removesuffix(".0")  # as pandas writes a column with gaps
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20 and int(digits) <= most):
        raise PeckerError(
            f"{where}: {what} must be a whole number from 0 to {most}, in each row or in none, got "
            f"{shown(cell)}"
        )
    return int(digits)


def _file_name(cell: str, where: str) -> str:
    if not _FILE.fullmatch(cell):
        raise PeckerError(
            f"{where}: save_as must be the name of a .png or .jpg of letters, digits, _, -, . and "
            f"spaces, without folders, in each row or in none, got {shown(cell)}"
        )
    return cell


def _guidance(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST_GUIDANCE:
        raise PeckerError(
            f"{where}: guidance must be a number from 0 to {_MOST_GUIDANCE:g}, in each row or in "
            f"none, got {shown(cell)}"
        )
    return value
