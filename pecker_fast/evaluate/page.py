"""One self-contained HTML page: a headline, tables, pictures, and what the words mean."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from markupsafe import Markup, escape

from pecker_fast.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "Charts",
    "Picture",
    "Section",
    "Sentence",
    "Table",
    "Terms",
    "add_attack",
    "marked",
    "write_page",
]


@dataclass(frozen=True)
class Sentence:
    """A paragraph below the headline."""

    text: str
    look: str = "lead"  # "lead", "muted" or "warn"
    bad: bool = False  # it says that something went wrong


@dataclass(frozen=True)
class Picture:
    """A PNG with its heading and the sentence that says what to look at.

    One that is `wide` takes the whole width of the page.
    """

    path: Path
    title: str
    caption: str
    wide: bool = False

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


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
    numbers: frozenset[int] = frozenset()  # indices of the columns whose cells are set right

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        rows = [list(row) for row in self.rows]
        return {"title": self.title, "note": self.note, "columns": list(self.columns), "rows": rows,
                **self.facts}  # fmt: skip


@dataclass(frozen=True)
class Charts:
    """SVG charts side by side; `legend` is the name and the swatch of each line, or empty."""

    title: str
    note: str
    charts: Sequence[Markup] = ()
    legend: Sequence[tuple[str, Markup]] = ()


@dataclass(frozen=True)
class Terms:
    """What words of the page mean: a part of terms.html."""

    kind: str  # "class", "concept" or "comparison"
    values: Mapping[str, Any] = field(default_factory=dict)  # what that part fills in


Section: TypeAlias = Picture | Table | Charts | Terms


def write_page(
    path: Path,
    headline: Sentence,
    sentences: Sequence[Sentence],
    sections: Sequence[Section],
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

    environment = Environment(
        loader=PackageLoader("pecker_fast.evaluate", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = _whole
    return environment


def _whole(text: str) -> str:
    """Text whose figures, e.g. "1.5 % (0.6 to 3.5), 6 of 400", are not broken over lines."""
    figures = r"(?<=\d) (?=%)|(?<=\d) (?:of|to) (?=\d)"
    return type(text)(
        re.sub(figures, lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    )


def marked(text: str, mark: str) -> Markup:
    """Text with a small letter behind it."""
    return Markup("{}<sup>{}</sup>").format(text, mark) if mark else escape(text)
