"""The README's tables of the training iteration and of its memory, on a CPU and on a card."""

from __future__ import annotations

from collections.abc import Callable

from gpu_tables import NETWORKS, Result, Rows, markdown, measured_on

__all__ = ["iteration", "memory"]

_NETWORKS = {
    **NETWORKS,
    "demo": "the demo's network",
    "cifar10": "CIFAR-10 as published",
    "stl10": "STL-10 as published",
}
_LARGEST = 4  # kinds of kernels and parts of memory that are named


def iteration(result: Result) -> str:
    """One line per variant, one column per network and batch size.

    Returns:
        Markdown; "" if the file has no such rows.
    """
    rows = [row for row in result["rows"] if "variant" in row]
    for row in rows:
        assert row["match"] is not False, f"a row that failed its gate: {row}"
    lines, networks = _by_network(rows, "variant", "p50_ms", _time)
    if not lines:
        return ""
    notes = []
    for network, found in networks.items():
        best = min((row for row in found if row["p50_ms"]), key=lambda row: row["p50_ms"])
        note = f"{network}, fastest line: {_hours(best)}"
        if best["peak_bytes"] is not None:
            note += f", {_gib(best['peak_bytes'])} at the peak"
        if best["optimizer_share"] is not None:
            note += f", {best['optimizer_share']:.1%} of it optimizers"
        note += f", set-up {best['setup_s']:.0f} s; {_largest(best['kinds'], '{:.0%}')}. "
        notes.append(note)
    return markdown(
        ["ms per iteration (times faster)", *networks],
        lines,
        f"Medians, in one process; every line was first checked against the first. {''.join(notes)}"
        f"{measured_on(result)}",
    )


def memory(result: Result) -> str:
    """One line per layout, one column per network.

    Returns:
        Markdown; "" if the file has no such rows.
    """
    rows = [row for row in result["rows"] if "layout" in row and "computed_peak_bytes" in row]
    lines, networks = _by_network(rows, "layout", None, _peaks)
    if not lines:
        return ""
    notes = []
    for network, found in networks.items():
        best = min(
            (row for row in found if row["computed_peak_bytes"]),
            key=lambda row: row["computed_peak_bytes"],
        )
        parts = {kind: size / 2**30 for kind, size in best["parts"].items()}
        notes.append(f"{network}, {best['layout']}: {_largest(parts, '{:.1f} GiB')}. ")
    return markdown(
        ["peak of an iteration", *networks],
        lines,
        "Computed from shapes and lifetimes with torch's blocks, without what happens inside an "
        f"operation; measured where it says so. {''.join(notes)}{measured_on(result)}",
    )


def _by_network(
    rows: Rows, line: str, needed: str | None, cell: Callable[[Result], str]
) -> tuple[list[list[str]], dict[str, Rows]]:
    """Lines with a cell per network, in the order of the rows; those without a figure left out."""
    networks: dict[str, Rows] = {}
    for row in rows:
        network = f"{_NETWORKS.get(row['preset'], row['preset'])}, batch {row['batch_size']}"
        networks.setdefault(network, []).append(row)
    if needed is not None:
        networks = {n: found for n, found in networks.items() if any(r[needed] for r in found)}
    lines = []
    for name in dict.fromkeys(row[line] for row in rows):
        cells = []
        for found in networks.values():
            row = next((row for row in found if row[line] == name), None)
            cells.append("-" if row is None else cell(row))
        if any(text != "-" for text in cells):
            lines.append([name, *cells])
    return lines, networks


def _time(row: Result) -> str:
    if row["p50_ms"] is None:
        return "-"
    text = f"{row['p50_ms']:,.0f}" if row["p50_ms"] >= 100 else f"{row['p50_ms']:.1f}"
    return text if row["vs_published"] is None else f"{text} ({row['vs_published']:.2f} x)"


def _hours(row: Result) -> str:
    """Of a whole run: as measured, or in proportion to the images where they were fewer."""
    batch = row["batch_size"]
    published = row.get("published_batch", batch)
    hours = row["run_hours"] * published / batch
    text = f"{hours:,.1f} h for 50,000 iterations"
    return text if published == batch else f"{text} of batch {published}, projected from this one"


def _peaks(row: Result) -> str:
    texts = []
    if row["computed_peak_bytes"] is not None:
        texts.append(_gib(row["computed_peak_bytes"]))
    if row["measured_peak_bytes"] is not None:
        texts.append(f"measured {_gib(row['measured_peak_bytes'])}")
    return ", ".join(texts) or "-"


def _largest(shares: dict[str, float], form: str) -> str:
    largest = sorted(shares.items(), key=lambda item: -item[1])[:_LARGEST]
    return ", ".join(f"{kind} {form.format(share)}" for kind, share in largest)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
