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
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, StringConstraints

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_text
from pecker_fast.runs.reading import Name, Schema, checked

__all__ = ["ALL", "PromptFile", "PromptRow", "read_prompt_file"]

GROUPS = ("forget", "override", "neighbours", "keep", "prompts")
"""What a prompt is there for. Of a file that does not say, all are in the last group, `ALL`."""

ALL: Literal["prompts"] = "prompts"

_MOST_BYTES = 64 << 20
_MOST_ROWS = 200_000
_NO_ZERO = r"^[^\x00]*$"

_Text: TypeAlias = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000, pattern=_NO_ZERO)
]
_Group: TypeAlias = Annotated[
    Literal["forget", "override", "neighbours", "keep", "prompts"],
    BeforeValidator(lambda cell: cell.strip().lower()),
]
_File: TypeAlias = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=r"^\w[\w. -]{0,150}\.(png|jpg)$"),
]


class PromptRow(Schema):
    """One prompt. Of columns with several names the first one that is there counts."""

    model_config = ConfigDict(strict=False, extra="ignore", populate_by_name=True)

    prompt: _Text
    group: _Group = ALL
    # What it names, in the words of whoever judges the images; None where nobody says.
    label: Name | None = None
    # Of its noise; None in a file without seeds.
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = Field(
        None, validation_alias=AliasChoices("seed", "evaluation_seed", "sd_seed")
    )
    # Of its images in many steps; None in a file without.
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, validation_alias=AliasChoices("guidance", "evaluation_guidance", "sd_guidance_scale")
    )
    save_as: _File | None = None  # name of its image's file; None: images are numbered


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file."""

    source: str  # the file, as it was given
    rows: Sequence[PromptRow]  # in its order

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that have prompts, what is to be forgotten first."""
        return tuple(group for group in GROUPS if any(row.group == group for row in self.rows))

    @property
    def digest(self) -> str:
        """SHA-256 of the rows."""
        rows = [[*row.model_dump().values()][: None if row.save_as else -1] for row in self.rows]
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
        lines = ((n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip())
        rows = [checked(PromptRow, {"prompt": line}, f"{file}, line {n}") for n, line in lines]
    if not 0 < len(rows) <= _MOST_ROWS:
        raise PeckerError(f"{file}: holds {len(rows):,} prompts, expected 1 to {_MOST_ROWS:,}")
    saved = Counter(row.save_as.lower() for row in rows if row.save_as is not None)
    if twice := [name for name, count in saved.items() if count > 1]:
        raise PeckerError(f"{file}: save_as {few(twice)} stands in several rows; name each apart")
    return PromptFile(str(path), rows)


def _rows_of(text: str, file: Path) -> Iterator[PromptRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if len({*names}) < len(names):
            raise PeckerError(f"{file}: has two columns of one name, {few(names, 6)}; rename one")
        reader.fieldnames = names
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if None in cells or None in cells.values():
                raise PeckerError(
                    f"{where}: expected {len(names)} cells, as the header has; put quotes around a "
                    "prompt with commas"
                )
            cells["label"] = cells.get("label", "").strip() or None
            yield checked(PromptRow, cells, f"{where} (a column is filled in each row or in none)")
    except csv.Error as error:
        raise PeckerError(
            f"{file}, line {reader.line_num}: not valid CSV ({error}); save it as CSV again"
        ) from error
