"""Result files and their rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pecker_fast.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, Any]
"""One provider on one case. What there is no figure of is None or not there.

`match` says whether its result was right (None: nothing to check it against), `skipped` why there
is no time; `p50_ms` is the median.
"""
Result = dict[str, Any]
"""A result file: "machine", "rows", of bench.py also "complete" and "failures"."""

# What says which case a row is of.
_CASE = ("benchmark", "preset", "dtype", "mask", "scores", "density", "beta1", "batch_size", "rank")


def same_case(row: Row, other: Row) -> bool:
    """Whether two rows are providers of one case."""
    return all(row.get(key) == other.get(key) for key in _CASE)


def speed_up(row: Row, rows: Iterable[Row], over: str) -> float | None:
    """How many times faster a row is than the provider `over` of its case.

    Returns:
        None where either has no time, or the row was not checked, or one of them is wrong.
    """
    for other in rows:
        if other["provider"] == over and same_case(row, other):
            wrong = row.get("match") is not True or other.get("match") is False
            if wrong or not row.get("p50_ms") or not other.get("p50_ms"):
                return None
            return other["p50_ms"] / row["p50_ms"]
    return None


def write_results(path: Path, result: Result) -> None:
    """Write a result file, whole or not at all: the machine, then one line per row."""
    rows = ",\n".join("    " + json.dumps(row) for row in result["rows"])
    head = {key: value for key, value in result.items() if key != "rows"}
    text = json.dumps(head, indent=2)[:-2] + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def slug(name: str) -> str:
    """A card's name as a file name: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
