"""The tables of whole runs: the demo, training iterations, their memory, what processes send."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

from rows import Cell, Result, Row, largest, measured_on, network, rows_of, span, speed_up, table

from pecker_fast.evaluate.intervals import Share

__all__ = [
    "budget", "communication", "demo", "demo_settings", "dry_run", "emoji", "evidence", "iteration",
    "language", "memory",
]  # fmt: skip

_BEFORE = ("forget_accuracy_before", "keep_accuracy_teacher", "frechet_teacher")
_AFTER = ("forget_accuracy_after", "keep_accuracy_after", "frechet_after")


def _figures(*heads: str) -> list[tuple[str, Cell]]:
    """Columns of some runs: the mean and the range of two accuracies and of a distance."""

    def column(key: str, form: str) -> Cell:
        def cell(runs: list[Row]) -> str:
            values = [run[key] for run in runs]
            ends = f" ({form.format(min(values))} to {form.format(max(values))})"
            return form.format(mean(values)) + (ends if len(values) > 1 else "")

        return cell

    forms = ("{:.3f}", "{:.3f}", "{:.1f}")
    return [(head, column(*one)) for head, *one in zip(heads, _AFTER, forms, strict=True)]


def demo(result: Result) -> str:
    """For each pair of classes, the original model and each kind of mask, over the seeds."""
    rows = result["rows"]
    names = {
        "original": "original, 50 steps",
        "saliency": "erased, most salient 10 %, one step",
        "random": "control: a random 10 %, one step",
        "full": "control: all parameters, one step",
    }
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["forget"], row["override"]), []).append(row)
    for found in pairs.values():
        before = {after: found[0][key] for after, key in zip(_AFTER, _BEFORE, strict=True)}
        found.insert(0, {**found[0], **before, "mask": "original", "worst_share": None})

    def gone(runs: list[Row]) -> str:
        bounds = [row["forget_interval_after"][1] for row in runs]
        return f"{max(bounds):.3f}" if runs[0]["mask"] != "original" else "-"

    def worst(runs: list[Row]) -> str:
        shares = [row["worst_share"] for row in runs if row.get("worst_share") is not None]
        return f"{mean(shares):.3f} ({span(shares, '{:.2f}')})" if shares else "-"

    lines = [
        [row for row in found if row["mask"] == kind] for found in pairs.values() for kind in names
    ]
    frozen = next(row["frozen_parameters"] for row in rows if row["mask"] == "saliency")
    seeds = len({row["seed"] for row in rows})
    return table(
        [runs for runs in lines if runs],
        [
            ("", lambda runs: f"{runs[0]['forget']} -> {runs[0]['override']}: "
             f"{names[runs[0]['mask']]}"),
            *_figures("still recognised as such", "other classes recognised", "Fréchet distance"),
            ("largest 95 % bound", gone),
            ("worst other way of asking", worst),
        ],
        f"Mean of {seeds} seeds (range in brackets), 5,000 samples each, 500 of the class, and 100 "
        "or more in each other way; Fréchet distance of the other classes in the features of the "
        f"shipped classifier. In every run under a mask all {frozen:,} frozen parameters kept "
        f"their bits. {measured_on(result)}",
    )  # fmt: skip


def demo_settings(result: Result) -> str:
    """The demo with a mask on both networks and in bf16, against the usual one."""
    names = {
        "saliency": "mask on the generator, dense pseudo-score, fp32",
        "both": "mask on both, one set of weights, fp32",
        "bf16": "mask on the generator, bf16 weights",
    }
    return table(
        [[row for row in result["rows"] if row["case"] == case] for case in names],
        [
            ("one stage, density 0.1", lambda runs: names[runs[0]["case"]]),
            *_figures("still recognised", "others recognised", "Fréchet"),
            ("seeds", lambda runs: str(len(runs))),
        ],
        f"Mean of the seeds (range in brackets), 5,000 samples each. {measured_on(result)}",
    )


_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t of a two-sided 95 % interval, by the number of values."""


def _mean(measured: list[float | None], form: str) -> str:
    """A mean and half of its 95 % interval, which a single value does not have."""
    values = [value for value in measured if value is not None]
    if not values:
        return "-"
    text = form.format(mean(values))
    if len(values) == 1:
        return text
    half = _T95[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{text} ± {form.format(half)}"


def evidence(result: Result) -> str:
    """One line per kind of mask and density, at its best learning rate."""
    cells: dict[tuple[Any, ...], dict[float, list[Row]]] = {}
    for row in result["rows"]:
        keys = ("preset", "objective", "granularity", "mask", "density")
        rates = cells.setdefault(tuple(row[key] for key in keys), {})
        rates.setdefault(row["lr"], []).append(row)

    def quality(runs: list[Row]) -> tuple[float, float]:
        return -mean(row["reached"] for row in runs), mean(row["iterations"] for row in runs)

    # While the study is under way, not every rate has every seed.
    best = [min(r.values(), key=lambda runs: (-len(runs), *quality(runs))) for r in cells.values()]
    best.sort(key=lambda runs: (runs[0]["preset"], runs[0]["objective"], quality(runs)))

    def named(runs: list[Row]) -> str:
        row = runs[0]
        mask = "all parameters" if row["mask"] == "full" else f"{row['mask']} {row['density']:g}"
        grain = "" if row["granularity"] == "element" else f", {row['granularity']}"
        return f"{row['preset']}, {row['objective']}: {mask}{grain}"

    def of(key: str, form: str) -> Cell:
        return lambda runs: _mean([row[key] for row in runs], form)

    return table(
        best,
        [
            ("run: mask, density", named),
            ("lr", lambda runs: f"{runs[0]['lr']:g}"),
            ("gone and kept", lambda runs: f"{sum(r['reached'] for r in runs)} of {len(runs)}"),
            ("iterations", of("iterations", "{:.0f}")),
            ("still recognised", of("forget_accuracy", "{:.3f}")),
            ("others", of("keep_accuracy", "{:.3f}")),
            ("Fréchet", of("frechet", "{:.1f}")),
            ("worst other way of asking", of("worst_share", "{:.2f}")),
        ],
        f"{len(result['rows'])} runs are in, each mask at the best of its learning rates (times "
        "density^-1/2). Means over seeds and half of the 95 % interval; a run that did not get "
        f"there counts with its limit. {measured_on(result)}",
    )


_METHODS = {"full": "all weights", "LoRA": "PEFT's LoRA", "SHiRA": "PEFT's SHiRA"}


def language(result: Result) -> str:
    """One line per method and number of trained values, each at its best learning rate."""
    costs = rows_of(result, "language_cost")
    cells: dict[tuple[int, str], list[Row]] = {}
    for row in rows_of(result, "language"):
        cells.setdefault((row["rank"], row["method"]), []).append(row)

    def named(runs: list[Row]) -> str:
        name = _METHODS.get(runs[0]["method"], f"mask, {runs[0]['method']}")
        return f"{name}: {runs[0]['trained_values']:,}"

    def rate(runs: list[Row]) -> str:
        lr, tried = runs[0]["lr"], [lr for _, lr in runs[0]["tried"]]
        edge = " (highest)" if lr == max(tried) else " (lowest)" if lr == min(tried) else ""
        return f"{lr:.2g}{edge}"

    def cost(key: str, form: str, batch: int, size: float = 1.0) -> Cell:
        found = {
            (row["provider"], row["trained_values"]): form.format(row[key] / size)
            for row in costs
            if row["batch_size"] == batch and row.get(key)
        }
        return lambda runs: found.get((runs[0]["method"], runs[0]["trained_values"]), "-")

    def loss(text: str, since: float = 0.0) -> Cell:
        return lambda runs: _mean([row[f"{text}_loss"] - since for row in runs], "{:.3f}")

    def file(key: str) -> Cell:
        def cell(runs: list[Row]) -> str:
            size = mean(row[key] for row in runs)
            return f"{size / 1e3:,.0f} ({8 * size / runs[0]['trained_values']:.1f})"

        return cell

    if not cells:
        return ""
    runs = next(iter(cells.values()))
    base = runs[0]
    batches = sorted({row["batch_size"] for row in costs})
    factors = [speed_up(row, costs, "SHiRA") for row in costs if row["provider"] == "random"]
    faster = span([factor for factor in factors if factor], "{:.2f}") if any(factors) else "-"
    return table(
        cells.values(),
        [
            ("what learns: values", named),
            ("lr", rate),
            ("loss on code", loss("code")),
            ("prose forgotten", loss("prose", base["prose_loss_before"])),
            *((f"ms a step, {b} x 128", cost("p50_ms", "{:,.0f}", b)) for b in batches),
            *((f"peak MiB, {b} x 128", cost("peak_bytes", "{:,.0f}", b, 2**20)) for b in batches),
            ("file, KB (bits a value)", file("file_bytes")),
            ("in bf16", file("bf16_file_bytes")),
        ],
        f"Losses in nats a byte, of text that was held out; before: {base['code_loss_before']:.3f} "
        f"on code, {base['prose_loss_before']:.3f} on prose. Means of {len(runs)} seeds and "
        "half of the 95 % interval, from one base, each method at the best of three learning rates "
        "on a seed and a text of their own. Steps: medians of CPU time in turns; peaks above what "
        f"the process had before, weights included. A random mask's steps are {faster} times as "
        f"fast as SHiRA's. {measured_on(result)}",
    )


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


def budget(result: Result) -> str:
    """One line per way to run the iteration, one column per network."""

    def note(found: list[Row]) -> str:
        ms, kernels = found[0]["parts_ms"], found[0]["parts_kernels"]
        kinds = largest(ms, "{:.0f} ms".format)
        return f"{found[0]['provider']}: {sum(kernels.values()):,} kernels; {kinds}"

    caption = "Computed from shapes for an H100, measured nowhere (`benchmarks/budget.py`)."
    time = ("predicted ms per iteration", lambda row: f"{row['predicted_ms']:.0f}")
    return _by_network(result, rows_of(result, "budget"), time, caption, note)


def dry_run(result: Result) -> str:
    """One line per run: what was said of it, and what it took."""

    def run(row: Row) -> str:
        share = "" if row["channels"] == 1 else f", {row['channels']:g} of its channels"
        again = ", blocks computed twice" if row["recompute_blocks"] else ""
        return f"{network(row)}{share}, latents of {row['side']}{again}"

    def off(row: Row) -> str:
        return f"{row['measured_peak_bytes'] / row['computed_peak_bytes'] - 1:+.1%}"

    rows = rows_of(result, "dry_run")
    notes = " ".join(f"{run(row)}: {largest(row['parts'], _gib)}." for row in rows)
    return table(
        rows,
        [
            ("one iteration of 1 + 1 images, fp32", run),
            ("peak said", lambda row: _gib(row["computed_peak_bytes"])),
            ("resident in the run", lambda row: _gib(row["measured_peak_bytes"])),
            ("off by", off),
            ("s an iteration", lambda row: f"{row['iteration_s']:.0f}"),
            ("s of the run", lambda row: f"{row['run_s']:.0f}"),
            ("frozen entries changed", lambda row: str(row["frozen_changed"])),
        ],
        "Random weights, one set for all three networks. Peak of resident memory of the whole "
        f"command, loading and writing included. {notes} {measured_on(result)}",
    )


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


def communication(result: Result) -> str:
    """One line per way to send, MB of each process by number of processes."""
    rows = [row for row in result["rows"] if row["payload_bytes"]]
    if any(row["wire_bytes"] is None for row in rows):
        raise SystemExit("rows that were not counted: see communication.py for how they are")
    names = {"no mask": "ours, no mask", "mask on both": "mask on both networks, density 0.1"}
    lines: dict[str, dict[int, Row]] = {}
    for row in rows:
        name = f"{row['what']}: {names.get(row['name'], row['name'])}"
        lines.setdefault(name, {})[row["processes"]] = row

    def sent(size: int) -> list[tuple[str, Cell]]:
        return [
            (f"{size} processes, MB", lambda name: f"{lines[name][size]['wire_bytes'] / 1e6:.1f}"),
            ("of DDP", lambda name: f"{lines[name][size]['share_of_ddp']:.1%}"),
        ]

    sizes = sorted({row["processes"] for row in rows})
    ratios = [row["wire_of_ring"] for row in rows if row["name"] != "fully_shard"]
    return table(
        lines,
        [("sent by each process", str), *(pair for size in sizes for pair in sent(size))],
        f"gloo, {rows[0]['parameters'] / 1e6:.1f} M parameters (CIFAR-10 as published), fp32; an "
        "iteration is compared with two DDP steps, since two networks learn. Counted by the "
        "loopback device of a private network, headers included: "
        f"{span(ratios, '{:.3f}')} of 2 (N-1)/N payloads. Every line's sums were "
        f"first checked. {measured_on(result)}",
    )


def emoji(result: Result) -> str:
    """One line per erasure of an object or a style, the original's first."""

    def share(name: str) -> Cell:
        return lambda row: str(Share(*row[name]))

    def named(row: Row) -> str:
        rate = "" if row["lr"] is None else f", lr {row['lr']:g}"
        return f"{row['preset']}: {row['method']}{rate}"

    return table(
        result["rows"],
        [
            ("forgotten", named),
            ("still recognised", share("forgotten")),
            ("in-domain retention", share("in_domain")),
            ("cross-domain retention", share("cross_domain")),
            ("the other domain in images asked for it", share("beside")),
        ],
        f"Shares with Wilson's 95 % intervals; one seed. {measured_on(result)}",
    )
