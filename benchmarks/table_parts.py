"""What the README's tables are made of: a table of columns, and cells that several have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rows import Row

__all__ = [
    "OURS", "Cell", "Result", "gib", "largest", "measured_on", "network", "on",
    "place", "rows_of", "span", "table",
]  # fmt: skip

Result = dict[str, Any]
"""A result file: "machine", "rows", of bench.py also "complete" and "failures"."""

Cell = Callable[[Any], str]
OURS = "pecker_fast"
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
    """Markdown: a line for each row, the first column to the left; "" without a line.

    Args:
        rows: what there is a line for.
        columns: head, and what makes the cell of a row.
        caption: below.
    """
    heads, cells = zip(*columns, strict=True)
    body = [[cell(row) for cell in cells] for row in rows]
    if not body:
        return ""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *body])
    return f"{text}\n\n{caption}"


def on(result: Result) -> str:
    """Where and with what it was measured: the end of a caption."""
    machine = result["machine"]
    device = machine.get("device") or machine.get("cpu")
    return f"{device}, {machine['threads']} threads, torch {machine['torch']}."


def measured_on(result: Result) -> str:
    """The same with every version and the commit, and whether all of it was measured."""
    machine = result["machine"]
    text = f"{machine['device']}, torch {machine['torch']}"
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
    """Those of one benchmark."""
    return [row for row in result["rows"] if row.get("benchmark") == benchmark]


def network(row: Row) -> str:
    """As the tables call it."""
    return _NETWORKS.get(row["preset"], row["preset"])


def place(row: Row) -> int:
    """Where the network stands in a table."""
    names = list(_NETWORKS)
    return names.index(row["preset"]) if row["preset"] in names else len(names)


def span(values: list[float], form: str) -> str:
    """From the least to the most."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def largest(shares: dict[str, float], form: str) -> str:
    """The four largest parts."""
    found = sorted(shares.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{kind} {form.format(share)}" for kind, share in found)


def gib(size: int) -> str:
    """In GiB."""
    return f"{size / 2**30:.1f} GiB"
