"""The tables of optimizer steps and of top-k, on a CPU and of each card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rows import OURS, Cell, Result, Row, measured_on, network, rows_of, same_case, speed_up, table

__all__ = ["step_time", "step_time_of_card", "topk"]


def _mask(row: Row) -> str:
    return "no mask" if row["mask"] == "none" else f"{row['mask']}, density {row['density']:g}"


def _over(rows: list[Row], form: Callable[[float], str]) -> list[tuple[str, Cell]]:
    """Columns with the speed-ups over what people run."""
    heads = {
        "torch_fused": "vs torch fused, dense",
        "gradmask_fused": "vs `grad *= mask` + fused",
        "gradmask_fused_restore": "vs the same + restoring frozen entries",
    }

    def column(baseline: str) -> Cell:
        def cell(row: Row) -> str:
            factor = speed_up(row, rows, baseline)
            return "-" if factor is None else form(factor)

        return cell

    return [(head, column(baseline)) for baseline, head in heads.items()]


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
        f"copying. {measured_on(result)}",
    )


_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_MASKS = ("none", "random", "heavy")


def _setting(row: Row) -> str:
    text = f"{network(row)}, {_DTYPES[row['dtype']]}"
    return f"{text}, beta1 = 0" if row["beta1"] == 0 else text


def _order(row: Row) -> tuple[Any, ...]:
    """Of the lines of one network; `rows_of` has the networks in theirs."""
    dtype, mask = list(_DTYPES).index(row["dtype"]), _MASKS.index(row["mask"])
    return dtype, -row["beta1"], mask, -row["density"]


def step_time_of_card(result: Result) -> str:
    """One line per network and mask, one column per backend; ratios are the faster one's."""
    rows = rows_of(result, "step_time")
    ours = [row for row in rows if row["provider"].startswith(OURS) and row.get("p50_ms")]
    presets = list(dict.fromkeys(row["preset"] for row in ours))
    ours.sort(key=lambda row: (presets.index(row["preset"]), *_order(row)))

    def same(row: Row) -> list[Row]:
        return [other for other in ours if same_case(other, row)]

    best = [row for row in ours if row is min(same(row), key=lambda other: other["p50_ms"])]

    def time(backend: str) -> Cell:
        def cell(row: Row) -> str:
            found = [other for other in same(row) if other["provider"] == backend]
            return f"{found[0]['p50_ms']:.3f}" if found else "-"

        return cell

    backends = sorted({row["provider"] for row in ours})
    return table(
        best,
        [
            ("network", _setting),
            ("mask", _mask),
            *((f"ms, {name.removeprefix(OURS)[1:-1]}", time(name)) for name in backends),
            ("of the floor", "{floor_share:.0%}".format_map),
            *_over(rows, lambda factor: f"{factor:.1f} x" if factor >= 2 else f"{factor:.2f} x"),
            ("host, µs", lambda row: f"{row['host_us'] or 0:.0f}"),
        ],
        "GPU time of a step with new gradient tensors and an empty L2 cache, medians; "
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


def _selection(row: Row) -> str:
    return _SELECTIONS.get(row["provider"], row["provider"])


def topk(result: Result) -> str:
    """Ours against the baselines on the largest network: fastest calls, on a card medians."""
    on_card = "cuda" in result["machine"]
    ms = "p50_ms" if on_card else "min_ms"
    rows = [r for r in rows_of(result, "topk") if r.get("p50_ms") and r["density"] == 0.1]
    rows = [row for row in rows if row.get("scores") != "normal"]  # in older files
    numel = max((row["numel"] for row in rows), default=0)
    rows = [row for row in rows if row["numel"] == numel]
    names = list(_SELECTIONS)
    rows.sort(key=lambda row: row[ms] if on_card else names.index(row["provider"]))
    ours = min((row[ms] for row in rows if row["provider"].startswith(OURS)), default=None)

    def memory(key: str) -> Cell:
        return lambda row: "-" if row[key] is None else f"{row[key] / 2**20:,.0f} MiB"

    columns: list[tuple[str, Cell]] = [
        (f"top 10 % of {numel / 1e6:.2f} M scores", _selection),
        ("ms", lambda row: f"{row[ms]:,.2f}" if on_card else f"{row[ms]:,.0f}"),
        ("relative", lambda row: "-" if ours is None else f"{row[ms] / ours:.1f} x"),
    ]
    if on_card:
        columns += [
            ("of one read", "{floor_share:.0%}".format_map),
            ("memory", memory("peak_extra_bytes")),
            ("memory beside the result", memory("extra_bytes_without_result")),
        ]
        caption = "Heavy-tailed scores, medians;"
    else:
        columns.append(("memory, result included", memory("peak_extra_bytes")))
        caption = "Fastest of three rounds in which they took turns, heavy-tailed scores;"
    return table(rows, columns, f"{caption} the same selection in every row. {measured_on(result)}")
