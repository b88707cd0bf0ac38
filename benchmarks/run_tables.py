"""Tables of training iterations: their time and their memory."""

from __future__ import annotations

from collections.abc import Callable

from rows import Cell, Result, Row, largest, measured_on, network, rows_of, speed_up, table

__all__ = ["iteration", "memory"]


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def iteration(result: Result) -> str:
    """One line per variant, one column per network and batch size."""
    rows = [row for row in rows_of(result, "iteration") if row.get("p50_ms")]

    def time(row: Row) -> str:
        text = f"{row['p50_ms']:,.0f}" if row["p50_ms"] >= 100 else f"{row['p50_ms']:.1f}"
        factor = speed_up(row, rows, "as published")
        return text if factor is None else f"{text} ({factor:.2f} x)"

    def note(found: list[Row]) -> str:
        best = min(found, key=lambda row: row["p50_ms"])
        batch = best["batch_size"]
        published = best.get("published_batch", batch)
        text = f"fastest line: {best['run_hours'] * published / batch:,.1f} h for 50,000 iterations"
        if published != batch:
            text += f" of batch {published}, projected from this one"
        if best.get("peak_bytes") is not None:
            text += f", {_gib(best['peak_bytes'])} at the peak"
        text += f", {best['optimizer_share']:.1%} of it optimizers, set-up {best['setup_s']:.0f} s"
        return f"{text}; {largest(best['kinds'], '{:.0%}'.format)}"

    caption = "Medians, in one process; every line was first checked against the first."
    return _by_network(result, rows, ("ms per iteration (times faster)", time), caption, note)


def memory(result: Result) -> str:
    """One line per layout, one column per network."""

    def peaks(row: Row) -> str:
        computed, measured = row.get("computed_peak_bytes"), row.get("measured_peak_bytes")
        texts = [_gib(computed)] if computed else []
        return ", ".join([*texts, f"measured {_gib(measured)}"] if measured else texts) or "-"

    def note(found: list[Row]) -> str:
        computed = [row for row in found if row.get("computed_peak_bytes")]
        best = min(computed, key=lambda row: row["computed_peak_bytes"])
        return f"{best['provider']}: {largest(best['parts'], _gib)}"

    caption = (
        "Computed from shapes and lifetimes with torch's blocks, without what happens inside an "
        "operation; measured where it says so."
    )
    rows = rows_of(result, "memory")
    return _by_network(result, rows, ("peak of an iteration", peaks), caption, note)


def _by_network(
    result: Result,
    rows: list[Row],
    figure: tuple[str, Cell],
    caption: str,
    note: Callable[[list[Row]], str],
) -> str:
    """A line per provider and a column per network; lines without a figure are left out."""
    head, cell = figure
    networks: dict[str, list[Row]] = {}
    for row in rows:
        networks.setdefault(f"{network(row)}, batch {row['batch_size']}", []).append(row)

    def column(found: list[Row]) -> Cell:
        cells = {row["provider"]: cell(row) for row in found}
        return lambda name: cells.get(name, "-")

    columns = [(name, column(found)) for name, found in networks.items()]
    providers = dict.fromkeys(row["provider"] for row in rows)
    notes = " ".join(f"{name}, {note(found)}." for name, found in networks.items())
    return table(
        [name for name in providers if any(made(name) != "-" for _, made in columns)],
        [(head, str), *columns],
        f"{caption} {notes} {measured_on(result)}",
    )
