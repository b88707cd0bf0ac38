"""The tables of optimizer steps and of top-k, on a CPU and of each card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rows import Row, same_case, speed_up
from table_parts import OURS, Cell, Result, measured_on, network, on, place, rows_of, span, table

__all__ = ["step_time", "step_time_of_card", "topk"]


def _mask(row: Row) -> str:
    return "no mask" if row["mask"] == "none" else f"{row['mask']}, density {row['density']:g}"


def _over(rows: list[Row], form: Callable[[float], str]) -> list[tuple[str, Cell]]:
    """Columns with the speed-ups over what people run."""

    def column(baseline: str) -> Cell:
        def cell(row: Row) -> str:
            factor = speed_up(row, rows, baseline)
            return "-" if factor is None else form(factor)

        return cell

    return [
        ("vs torch fused, dense", column("torch_fused")),
        ("vs `grad *= mask` + fused", column("gradmask_fused")),
        ("vs the same + restoring frozen entries", column("gradmask_fused_restore")),
    ]


def step_time(result: Result) -> str:
    """Ours against the baselines, one line per mask."""
    rows, machine = rows_of(result, "step_time"), result["machine"]
    return table(
        [row for row in rows if row["provider"] == f"{OURS}[cpu]"],
        [
            ("mask", _mask),
            ("ms a step", "{p50_ms:.1f}".format_map),
            ("of in-place bandwidth", "{roof_share:.0%}".format_map),
            *_over(rows, "{:.1f} x".format),
            ("state", lambda row: f"{row['state_bytes'] / 1e6:.0f} MB"),
        ],
        "35.75 M parameters (CIFAR-10 DDPM shapes), fp32, betas (0.9, 0.999); medians of calls "
        "that take turns in one process; only the last baseline really freezes. Bandwidth measured "
        f"beside: {machine['in_place_gb_per_s']:.0f} GB/s in place, {machine['copy_gb_per_s']:.0f} "
        f"copying. {on(result)}",
    )


_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_MASKS = ("none", "random", "heavy")


def _order(row: Row) -> tuple[Any, ...]:
    dtype, mask = list(_DTYPES).index(row["dtype"]), _MASKS.index(row["mask"])
    return place(row), row["preset"], dtype, -row["beta1"], mask, -row["density"]


def _setting(row: Row) -> str:
    text = f"{network(row)}, {_DTYPES[row['dtype']]}"
    return f"{text}, beta1 = 0" if row["beta1"] == 0 else text


def step_time_of_card(result: Result) -> str:
    """One line per network and mask, one column per backend; ratios are the faster one's."""
    rows = rows_of(result, "step_time")
    ours = [row for row in rows if row["provider"].startswith(OURS) and row.get("p50_ms")]
    models = sorted((row for row in ours if row["layout"] == "model"), key=_order)
    best: dict[tuple[Any, ...], Row] = {}
    for row in models:
        if row["p50_ms"] <= best.setdefault(_order(row), row)["p50_ms"]:
            best[_order(row)] = row

    def time(backend: str) -> Cell:
        def cell(row: Row) -> str:
            same = [r for r in models if r["provider"] == backend and same_case(r, row)]
            return f"{same[0]['p50_ms']:.3f}" if same else "-"

        return cell

    ratios: dict[str, list[float]] = {}  # how much many small tensors cost
    for row in best.values():
        for other in ours:
            same = other["provider"] == row["provider"] and same_case(other, row)
            if same and other["layout"] == "one tensor":
                ratios.setdefault(_setting(row), []).append(row["p50_ms"] / other["p50_ms"])
    single = "".join(
        f"{name}: {span(found, '{:.2f}')} times the time of the same step in one tensor. "
        for name, found in ratios.items()
    )
    backends = sorted({row["provider"] for row in models})
    return table(
        best.values(),
        [
            ("network", _setting),
            ("mask", _mask),
            *((f"ms, {name.removeprefix(OURS)[1:-1]}", time(name)) for name in backends),
            ("of the floor", "{floor_share:.0%}".format_map),
            *_over(rows, lambda factor: f"{factor:.1f} x" if factor >= 2 else f"{factor:.2f} x"),
            ("host, µs", lambda row: f"{row['host_us'] or 0:.0f}"),
        ],
        f"{single}GPU time of a step with new gradient tensors and an empty L2 cache, medians; "
        "shares and ratios are those of the faster backend. The floor is what a masked step must "
        "move, at the copy bandwidth measured beside it, "
        f"{result['machine'].get('copy_gb_per_s', 0):,.0f} GB/s; host: until `step()` returns. "
        f"{measured_on(result)}",
    )


_SELECTIONS = {
    f"{OURS}[cpu]": OURS,
    "torch.topk": "`torch.topk` of the concatenation",
    "salun_double_argsort": "two argsorts, as SalUn does it",
    "torch.sort": "one stable sort (the reference)",
}


def topk(result: Result) -> str:
    """Ours against the baselines on the largest network: fastest calls, on a card medians."""
    on_card = "cuda" in result["machine"]
    ms = "p50_ms" if on_card else "min_ms"
    rows = [
        row
        for row in rows_of(result, "topk")
        if (row["scores"], row["density"]) == ("heavy", 0.1) and row.get("p50_ms")
    ]
    numel = max((row["numel"] for row in rows), default=0)
    rows = [row for row in rows if row["numel"] == numel]
    if on_card:
        rows.sort(key=lambda row: row[ms])
    else:
        rows.sort(key=lambda row: list(_SELECTIONS).index(row["provider"]))
    ours = min((row[ms] for row in rows if row["provider"].startswith(OURS)), default=None)

    def memory(key: str) -> Cell:
        return lambda row: "-" if row[key] is None else f"{row[key] / 2**20:,.0f} MiB"

    columns: list[tuple[str, Cell]] = [
        (
            f"top 10 % of {numel / 1e6:.2f} M scores",
            lambda row: _SELECTIONS.get(row["provider"], row["provider"]),
        ),
        ("ms", lambda row: f"{row[ms]:,.2f}" if on_card else f"{row[ms]:,.0f}"),
        ("relative", lambda row: "-" if ours is None else f"{row[ms] / ours:.1f} x"),
    ]
    if not on_card:
        return table(
            rows,
            [*columns, ("memory, result included", memory("peak_extra_bytes"))],
            "Fastest of three rounds in which they took turns, heavy-tailed scores; the same "
            f"selection in every row. {on(result)}",
        )
    columns += [
        ("of one read", "{floor_share:.0%}".format_map),
        ("memory", memory("peak_extra_bytes")),
        ("memory beside the result", memory("extra_bytes_without_result")),
    ]
    caption = "Heavy-tailed scores, medians; the same selection in every row."
    return table(rows, columns, f"{caption} {measured_on(result)}")
