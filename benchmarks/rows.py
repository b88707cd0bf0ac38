"""Result files, their rows, and what the tables that are made of them have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pecker_fast.files import write_text

__all__ = [
    "OURS", "RESULTS", "Cell", "Result", "Row", "largest", "measured_on", "network",
    "rows_of", "same_case", "slug", "speed_up", "table", "write_results",
]  # fmt: skip

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "pecker_fast"
Row = dict[str, Any]
"""One provider on one case. What there is no figure of is None or not there.

`match` says whether its result was right (None: nothing to check it against), `skipped` why there
is no time; `p50_ms` is the median, p20_ms and p80_ms are deciles.
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


# ---- tables

Cell = Callable[[Any], str]
_NETWORKS = {
    "sd15": "SD 1.5",
    "sdxl": "SDXL",
    "ddpm_stl10": "STL-10 DDPM",
    "ddpm_cifar10": "CIFAR-10 DDPM",
    "demo": "the demo's network",
    "cifar10": "CIFAR-10 as published",
    "stl10": "STL-10 as published",
}


def table(rows: Iterable[Any], columns: Sequence[tuple[str, Cell]], caption: str) -> str:
    """Markdown: a line for each row, the first column to the left; "" without a line."""
    heads, cells = zip(*columns, strict=True)
    body = [[cell(row) for cell in cells] for row in rows]
    if not body:
        return ""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *body])
    return f"{text}\n\n{caption}"


def measured_on(result: Result) -> str:
    """The end of a caption: where, with which versions and commit, and whether it is complete."""
    machine = result["machine"]
    text = f"{machine.get('device') or machine['cpu']}, torch {machine['torch']}"
    for key, name in (("cuda", "CUDA"), ("triton", "Triton"), ("driver", "driver")):
        if machine.get(key):
            text += f", {name} {machine[key]}"
    if "cuda" not in machine:
        text += f", {machine['threads']} threads"
    failures = result.get("failures")
    failed = f" {len(failures)} cases failed." if failures else ""
    cut = "" if result.get("complete", True) else " Not every case was measured."
    return f"{text}, commit {machine['commit']}.{failed}{cut}"


def rows_of(result: Result, benchmark: str) -> list[Row]:
    """Those of one benchmark, network by network as in `_NETWORKS`."""
    rows = [row for row in result["rows"] if row.get("benchmark") == benchmark]
    names = [*_NETWORKS, *(row["preset"] for row in rows)]
    return sorted(rows, key=lambda row: names.index(row["preset"]))


def network(row: Row) -> str:
    """As the tables call it."""
    return _NETWORKS.get(row["preset"], row["preset"])


def largest(parts: dict[str, float], form: Callable[[float], str]) -> str:
    """The four largest parts, each with its size."""
    found = sorted(parts.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{kind} {form(size)}" for kind, size in found)
