"""The README's tables of what gpu.py has measured on one card."""

from __future__ import annotations

from typing import Any

__all__ = ["NETWORKS", "Result", "Rows", "markdown", "measured_on", "step_time", "topk"]

Rows = list[dict[str, Any]]
Result = dict[str, Any]

NETWORKS = {
    "sd15": "SD 1.5",
    "sdxl": "SDXL",
    "ddpm_stl10": "STL-10 DDPM",
    "ddpm_cifar10": "CIFAR-10 DDPM",
}
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_MASKS = ("none", "random", "heavy")
_OURS = "pecker_fast"


def markdown(head: list[str], lines: list[list[str]], caption: str) -> str:
    """A table with its first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])
    return f"{body}\n\n{caption}"


def step_time(result: Result) -> str:
    """One line per network and mask, one column per backend; ratios are the faster one's.

    Returns:
        Markdown; "" if the file has no such rows.
    """
    cases = _cases(result)
    if not cases:
        return ""
    backends = sorted({row["provider"] for rows in cases.values() for row in rows})
    lines, wins = [], dict.fromkeys(backends, 0)
    for (network, mask), rows in cases.items():
        best = min(rows, key=lambda row: row["p50_ms"])
        wins[best["provider"]] += 1
        times = {row["provider"]: f"{row['p50_ms']:.3f}" for row in rows}
        lines.append(
            [
                network,
                mask,
                *(times.get(backend, "-") for backend in backends),
                f"{best['floor_share']:.0%}",
                *(_ratio(best[f"vs_{name}"]) for name in ("torch_fused", "gradmask", "restore")),
                f"{best['host_us']:.0f}" if best["host_us"] is not None else "-",
            ]
        )
    return markdown(
        [
            "network",
            "mask",
            *(f"ms, {_backend(backend)}" for backend in backends),
            "of the floor",
            "vs torch fused, dense",
            "vs `grad *= mask` + fused",
            "vs the same + restoring frozen entries",
            "host, µs",
        ],
        lines,
        f"{_never_wins(wins)}{_one_tensor(cases)}"
        "GPU time of a step with new gradient tensors and an empty L2 cache, medians; shares and "
        "ratios are those of the faster backend. The floor is what a masked step must move, at the "
        f"copy bandwidth measured beside it, {result['machine']['copy_gb_per_s']:,.0f} GB/s; host: "
        f"until `step()` returns. {measured_on(result)}",
    )


def topk(result: Result) -> str:
    """Ours against the baselines on the largest network's heavy-tailed scores at density .1.

    Returns:
        Markdown; "" if the file has no such rows.
    """
    rows = [
        row
        for row in result["rows"]
        if row.get("benchmark") == "topk" and (row["scores"], row["density"]) == ("heavy", 0.1)
    ]
    if not rows:
        return ""
    numel = max(row["numel"] for row in rows)
    names = {
        "torch.topk": "`torch.topk` of the concatenation",
        "salun_double_argsort": "two argsorts, as SalUn does it",
        "torch.sort": "one stable sort (the reference)",
    }
    rows = [row for row in rows if row["numel"] == numel and "ms_median" in row]
    for row in rows:
        assert row["match"] != "WRONG", f"a row that failed its gate: {row}"
    ours = [row["ms_median"] for row in rows if row["provider"].startswith(_OURS)]
    fastest = min(ours, default=min(row["ms_median"] for row in rows))
    lines = [
        [
            names.get(row["provider"], row["provider"]),
            f"{row['ms_median']:,.2f}",
            f"{row['ms_median'] / fastest:.1f} x",
            f"{row['floor_share']:.0%}",
            _mebibytes(row["peak_extra_bytes"]),
            _mebibytes(row["extra_bytes_without_result"]),
        ]
        for row in sorted(rows, key=lambda row: row["ms_median"])
    ]
    return markdown(
        [
            f"top 10 % of {numel / 1e6:.2f} M scores",
            "ms",
            "relative",
            "of one read",
            "memory",
            "memory beside the result",
        ],
        lines,
        f"Heavy-tailed scores, medians; the same selection in every row. {measured_on(result)}",
    )


def _cases(result: Result) -> dict[tuple[str, str], Rows]:
    """(network, mask) as the table calls them -> the rows of our backends that have a time."""
    rows = [
        row
        for row in result["rows"]
        if row.get("benchmark") == "step_time"
        and row["layout"] == "model"
        and row["provider"].startswith(_OURS)
    ]
    for row in rows:
        assert row["match"] is not False, f"a row that failed its gate: {row}"
    order = list(NETWORKS)
    rows.sort(
        key=lambda row: (
            order.index(row["preset"]) if row["preset"] in order else len(order),
            list(_DTYPES).index(row["dtype"]),
            -row["beta1"],
            _MASKS.index(row["mask"]),
            -row["density"],
        )
    )
    cases: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if row["p50_ms"] is None:
            continue
        network = f"{NETWORKS.get(row['preset'], row['preset'])}, {_DTYPES[row['dtype']]}"
        if row["beta1"] == 0:
            network += ", beta1 = 0"
        mask = "no mask" if row["mask"] == "none" else f"{row['mask']}, density {row['density']:g}"
        cases.setdefault((network, mask), []).append(row)
    return cases


def _never_wins(wins: dict[str, int]) -> str:
    """Which backends are not the fastest in any line."""
    return "".join(
        f"The {_backend(backend)} backend is the faster one in no line. "
        for backend, count in wins.items()
        if count == 0
    )


def _one_tensor(cases: dict[tuple[str, str], Rows]) -> str:
    """How much many small tensors cost, over all lines where it was measured."""
    ratios: dict[str, list[float]] = {}
    for (network, _), rows in cases.items():
        best = min(rows, key=lambda row: row["p50_ms"])
        if best["times_one_tensor"] is not None:
            ratios.setdefault(network, []).append(best["times_one_tensor"])
    return "".join(
        f"{network}: {_range(found)} times the time of the same step in one tensor. "
        for network, found in ratios.items()
    )


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _backend(provider: str) -> str:
    return provider.removeprefix(f"{_OURS}[").removesuffix("]")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} x" if value >= 2 else f"{value:.2f} x"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f} MiB"


def measured_on(result: Result) -> str:
    """Where and with what it was measured, and whether all of it: the end of a caption."""
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
