"""One self-contained HTML page: a headline, tables, pictures, and what the words mean."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pecker_fast.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Picture", "Sentence", "Table", "add_attack", "write_page"]


@dataclass(frozen=True)
class Sentence:
    """A paragraph below the headline."""

    text: str
    look: str = "lead"  # "lead", "muted" or "warn"
    bad: bool = False  # it says that something went wrong


@dataclass(frozen=True)
class Picture:
    """A PNG with its heading and the sentence that says what to look at."""

    png: bytes
    title: str
    caption: str

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Table:
    """A table."""

    title: str  # its heading, or ""
    # As many cells each as there are columns; the first says what the others measure.
    rows: Sequence[Sequence[str]]
    columns: Sequence[str] = ("", "Original model", "Erased model")
    note: str = ""  # a sentence below the heading, e.g. which detector counted, or "".
    # What report.json holds of it beside the rows, in plain types.
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, ready for JSON."""
        rows = [list(row) for row in self.rows]
        return {"title": self.title, "note": self.note, "columns": list(self.columns), "rows": rows,
                **self.facts}  # fmt: skip


def write_page(
    path: Path,
    headline: Sentence,
    sentences: Sequence[Sentence],
    sections: Sequence[Picture | Table],
) -> None:
    """Write the page, whole or not at all; no script, nothing is loaded from elsewhere."""
    template = _templates().get_template("page.html")
    write_text(path, template.render(headline=headline, sentences=sentences, sections=sections))


def add_attack(path: Path, found: Sentence, ways: Table) -> None:
    """Put what an attack found below the headline of a page, in place of an earlier attack.

    `ways` is what came of each way of asking, to be unfolded. A page without a place for it stays
    as it is.
    """
    table = _templates().get_template("table.html").render(section=ways)
    part = Markup('<p class="{}">{}</p>\n<details><summary>{}</summary>\n{}</details>\n').format(
        "lead bad" if found.bad else "lead", found.text, ways.title, Markup(table)
    )
    begin, end = "<!-- attack -->", "<!-- /attack -->"
    before, has, rest = path.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    if has:
        write_text(path, before + begin + str(part) + end + after)  # Markup would escape the rest


def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("pecker_fast.evaluate", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
