"""The tables of README.md and docs/scaling.md, made from benchmarks/results/*.json.

python benchmarks/tables.py            # rewrite them
python benchmarks/tables.py --check    # exit 1 if one is stale

These may have a place in the README or not, and stay empty where there is no result file:
`iteration`, `published_runs`, `memory` and `communication` (`iteration-cpu.json` and so on), and of
each card that gpu.py has measured `step_time_gpu`, `topk_gpu`, `iteration_gpu` and `memory_gpu`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import gpu_tables
import iteration_tables
import scaling_tables
from gpu_tables import Rows, markdown

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SCALING = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> tuple[dict[str, Any], Rows]:
    """The machine and the rows of a result file."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    return result["machine"], result["rows"]


def cards() -> list[dict[str, Any]]:
    """The result files of GPUs, by name: those that gpu.py writes."""
    paths = sorted(path for path in RESULTS.glob("*.json") if not path.stem.endswith("-cpu"))
    return [json.loads(path.read_text()) for path in paths]


def on(machine: dict[str, Any]) -> str:
    """Where and with what it was measured."""
    device = machine.get("device") or machine.get("cpu")
    return f"{device}, {machine['threads']} threads, torch {machine['torch']}"


def demo() -> str:
    """Original model and each kind of mask, averaged over the seeds."""
    machine, rows = load("demo-cpu")
    names = {
        "saliency": "erased, most salient 10 %",
        "random": "control: a random 10 %",
        "full": "control: all parameters",
    }
    first = rows[0]
    original = [
        first["forget_accuracy_before"],
        first["keep_accuracy_teacher"],
        first["frechet_teacher"],
    ]
    lines = [["original, 50 steps", *_figures([original]), "ships with it"]]
    for kind, name in names.items():
        runs = [row for row in rows if row["mask"] == kind]
        figures = [
            [r["forget_accuracy_after"], r["keep_accuracy_after"], r["frechet_after"]] for r in runs
        ]
        seconds = median(row["wall_s"] for row in runs)
        lines.append([f"{name}, one step", *_figures(figures), f"{seconds:.0f} s"])
    frozen = next(row["frozen_parameters"] for row in rows if row["mask"] == "saliency")
    seeds = len({row["seed"] for row in rows})
    return markdown(
        [
            f"{first['forget']} -> {first['override']}",
            "still recognised as such",
            "other classes recognised",
            "Fréchet distance",
            "whole demo",
        ],
        lines,
        f"Mean of {seeds} seeds (range in brackets), median time, 5,000 samples each; Fréchet "
        "distance of the other classes in the features of the shipped classifier. In every "
        f"run under a mask all {frozen:,} "
        f"frozen parameters kept their bits. {on(machine)}.",
    )


def demo_settings(result: dict[str, Any]) -> str:
    """The demo with a mask on both networks and in bf16, against the usual one."""
    names = {
        "saliency": "mask on the generator, dense pseudo-score, fp32",
        "both": "mask on both, one set of weights, fp32",
        "bf16": "mask on the generator, bf16 weights",
    }
    lines = []
    for case, name in names.items():
        runs = [row for row in result["rows"] if row["case"] == case]
        assert not any(row["frozen_changed"] for row in runs)
        figures = [
            [r["forget_accuracy_after"], r["keep_accuracy_after"], r["frechet_after"]] for r in runs
        ]
        lines.append([name, *_figures(figures), str(len(runs))])
    return markdown(
        ["the demo, density 0.1", "still recognised", "others recognised", "Fréchet", "seeds"],
        lines,
        f"As in the first table; its runs are on another machine. {on(result['machine'])}.",
    )


def _figures(runs: list[list[float]]) -> list[str]:
    cells = []
    for values, form in zip(zip(*runs, strict=True), ("{:.3f}", "{:.3f}", "{:.1f}"), strict=True):
        cell = form.format(mean(values))
        if len(values) > 1:
            cell += f" ({form.format(min(values))} to {form.format(max(values))})"
        cells.append(cell)
    return cells


def step_time() -> str:
    """Ours against the baselines, one line per mask."""
    machine, rows = load("step_time-cpu")
    lines = []
    for row in rows:
        if row["provider"] != "pecker_fast[cpu]":
            continue
        assert row["match"], f"a row that failed its gate: {row}"
        mask = "no mask" if row["mask"] == "none" else f"{row['mask']}, density {row['density']:g}"
        vs = [row["vs_torch_fused"], row["vs_gradmask"], row["vs_restore"]]
        lines.append(
            [
                mask,
                f"{row['p50_ms']:.1f}",
                f"{row['roof_share']:.0%}",
                *("-" if value is None else f"{value:.1f} x" for value in vs),
                f"{row['state_bytes'] / 1e6:.0f} MB",
            ]
        )
    return markdown(
        [
            "mask",
            "ms a step",
            "of in-place bandwidth",
            "vs torch fused, dense",
            "vs `grad *= mask` + fused",
            "vs the same + restoring frozen entries",
            "state",
        ],
        lines,
        "35.75 M parameters (CIFAR-10 DDPM shapes), fp32, betas (0.9, 0.999); medians of calls "
        "that take turns in one process; only the last baseline really freezes. Bandwidth measured "
        f"beside: {machine['in_place_gb_per_s']:.0f} GB/s in place, {machine['copy_gb_per_s']:.0f} "
        f"copying. {on(machine)}.",
    )


def topk() -> str:
    """Ours against the baselines on heavy-tailed scores."""
    machine, rows = load("topk-cpu")
    names = {
        "pecker_fast cpu": "pecker_fast",
        "torch.topk": "`torch.topk` of the concatenation",
        "salun_double_argsort": "two argsorts, as SalUn does it",
        "torch.sort": "one stable sort (the reference)",
    }
    chosen = {
        row["provider"]: row
        for row in rows
        if row["scores"] == "heavy" and row["density"] == 0.1
    }  # fmt: skip
    ours = chosen["pecker_fast cpu"]["ms_min"]
    lines = []
    for provider, name in names.items():
        row = chosen[provider]
        assert row["match"] != "WRONG", f"a row that failed its gate: {row}"
        extra = row["peak_extra_bytes"]
        lines.append(
            [
                name,
                f"{row['ms_min']:,.0f}",
                f"{row['ms_min'] / ours:.1f} x",
                f"{extra / 2**20:,.0f} MiB",
            ]
        )
    return markdown(
        ["top 10 % of 35.75 M scores", "ms", "relative", "memory, result included"],
        lines,
        "Fastest of three rounds in which they took turns, heavy-tailed scores; the same selection "
        f"in every row. {on(machine)}.",
    )


TABLES = {"demo": demo, "step_time": step_time, "topk": topk}
# Name -> (result file, table), where the file may be missing.
OPTIONAL_TABLES = {
    "demo_settings": ("demo_settings-cpu", demo_settings),
    "iteration": ("iteration-cpu", iteration_tables.iteration),
    "published_runs": ("published_runs-cpu", iteration_tables.iteration),
    "memory": ("memory-cpu", iteration_tables.memory),
    "communication": ("communication-cpu", scaling_tables.communication_in_short),
}
SCALING_TABLES = {
    "communication": ("communication-cpu", scaling_tables.communication),
    "traffic": ("scaling-cpu", scaling_tables.traffic),
    "memory_per_gpu": ("scaling-cpu", scaling_tables.memory),
}
CARD_TABLES = {
    "step_time_gpu": gpu_tables.step_time,
    "topk_gpu": gpu_tables.topk,
    "iteration_gpu": iteration_tables.iteration,
    "memory_gpu": iteration_tables.memory,
}


def render(text: str) -> str:
    """The README with every table made anew.

    Raises:
        SystemExit: a table without its place, or with several.
    """
    for name, table in TABLES.items():
        text = _replaced(text, name, f"{table()}\n", allowed=(1,))
    optional = {}
    for name, (file, table) in OPTIONAL_TABLES.items():
        path = RESULTS / f"{file}.json"
        optional[name] = [table(json.loads(path.read_text()))] if path.exists() else []
    results = cards()
    for name, table in CARD_TABLES.items():
        optional[name] = [table(result) for result in results]
    for name, tables in optional.items():
        made = "\n\n".join(filter(None, tables))
        text = _replaced(text, name, f"{made}\n" if made else "", allowed=(0, 1))
    return text


def render_scaling(text: str) -> str:
    """docs/scaling.md with every table made anew.

    Raises:
        SystemExit: a table without its place, or with several.
    """
    for name, (file, table) in SCALING_TABLES.items():
        result = json.loads((RESULTS / f"{file}.json").read_text())
        text = _replaced(text, name, f"{table(result)}\n", allowed=(1,), page="docs/scaling.md")
    return text


def _replaced(
    text: str, name: str, table: str, allowed: tuple[int, ...], page: str = "README.md"
) -> str:
    pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
    text, found = re.subn(pattern, lambda match: f"{match[1]}{table}{match[2]}", text, flags=re.S)
    if found not in allowed:
        raise SystemExit(f"{page}: expected one place for the table {name!r}, found {found}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    arguments = parser.parse_args()
    stale = 0
    for page, rendered in ((README, render), (SCALING, render_scaling)):
        before = page.read_text()
        after = rendered(before)
        if after == before:
            continue
        stale = 1
        if arguments.check:
            name = page.relative_to(ROOT)
            print(f"{name}: a table is stale; run python benchmarks/tables.py")
        else:
            page.write_text(after)
    return stale if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
