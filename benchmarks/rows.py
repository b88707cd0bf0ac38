"""Result files: rows as they are written, the ratio of two rows, and where the files lie."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pecker_fast.files import write_text

__all__ = ["RESULTS", "Row", "same_case", "slug", "speed_up", "write_results"]

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, Any]
"""One provider on one case. What there is no figure of is None or not there.

`match` says whether its result was right (None: nothing to check it against), `skipped` why there
is no time; `p50_ms` is the median, p20_ms and p80_ms are deciles.
"""

# What says which case a row is of, besides the layout in memory.
_CASE = ("benchmark", "preset", "dtype", "mask", "scores", "density", "beta1", "batch_size")


def same_case(row: Row, other: Row) -> bool:
    """Whether two rows are providers of one case (or of the same step in another layout)."""
    return all(row.get(key) == other.get(key) for key in _CASE)


def speed_up(row: Row, rows: Iterable[Row], over: str, column: str = "p50_ms") -> float | None:
    """How many times faster a row is than the provider `over` of its case.

    Returns:
        None where either has no time, or the row was not checked, or one of them is wrong.
    """
    for other in rows:
        if other["provider"] == over and same_case(row, other):
            wrong = row.get("match") is not True or other.get("match") is False
            if wrong or not row.get(column) or not other.get(column):
                return None
            return other[column] / row[column]
    return None


def write_results(path: str | os.PathLike[str], result: dict[str, Any]) -> None:
    """Write a result file, whole or not at all: the machine, then one line per row."""
    rows = ",\n".join("    " + json.dumps(row) for row in result["rows"])
    head = {key: value for key, value in result.items() if key != "rows"}
    text = json.dumps(head, indent=2)[:-2] + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def slug(name: str) -> str:
    """A card's name as a file name: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
