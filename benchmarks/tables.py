"""The tables of README.md and docs/*.md, made from benchmarks/results/*.json.

python benchmarks/tables.py            # rewrite them
python benchmarks/tables.py --check    # exit 1 if one is stale

A table's place is between <!-- table: NAME --> and <!-- end -->, on any of these pages. It is made
of results/NAME-cpu.json, "cards" of all files of gpu.py, and stays empty where there is no such
file. Its caption begins with "caption" of the file, which whoever measures anew writes. Studies
that ran once are no such tables: their rows lie in results/, with the command and the commit that
has it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from rows import RESULTS, Result, Row, same_case, speed_up

ROOT = Path(__file__).resolve().parent.parent
_NETWORKS = {
    "sd15": "SD 1.5",
    "sdxl": "SDXL",
    "ddpm_stl10": "STL-10 DDPM",
    "ddpm_cifar10": "CIFAR-10 DDPM",
    "demo": "the demo's network",
    "cifar10": "CIFAR-10 as published",
    "stl10": "STL-10 as published",
}
# What people run today, as columns of speed-ups; these have no lines of their own.
_OVER = {
    "torch_fused": "vs torch fused, dense",
    "gradmask_fused": "vs `grad *= mask` + fused",
    "gradmask_fused_restore": "vs the same + restoring frozen entries",
    "torch.topk": "vs `torch.topk`",
    "salun_double_argsort": "vs two argsorts, as SalUn",
    "torch.sort": "vs one stable sort",
}
# Head -> template of a cell, filled with what `_told` says of a row. Where there is no such figure
# the cell is a dash. A column of dashes is left out, and so are names that all share.
_NAMES = {
    "network": "{network}",
    "dtype": "{dtype}",
    "mask": "{mask_named}",
    "provider": "{provider}",
}
_COLUMNS = {
    **_NAMES,
    "ms": "{ms}",
    "of bandwidth": "{roof_share:.0%}",
    **{head: f"{{{name.replace('.', '_')}:.1f}} x" for name, head in _OVER.items()},
    "vs as published": "{as published:.2f} x",
    "h for 50,000 as published": "{published_hours:,.1f}",
    "host, µs": "{host_us:.0f}",
    "state": "{state_mb:,.0f} MB",
    "memory": "{peak_extra_mb:,.0f} MB",
    "peak": "{peak_mb:,.0f} MB",
}


def _told(row: Row, rows: list[Row]) -> Row:
    """A row's columns, names and sizes of these, and its speed-up over each other of its case."""
    case = [other["provider"] for other in rows if same_case(row, other)]
    told = row | {over.replace(".", "_"): speed_up(row, rows, over) for over in case}
    for name, value in row.items():
        if name.endswith("_bytes") and value is not None:
            told[name.replace("_bytes", "_mb")] = value / 1e6
    told["network"] = _NETWORKS.get(row["preset"], row["preset"])
    if "batch_size" in row:
        told["network"] += f", batch {row['batch_size']}"
    told["mask_named"] = f"{row.get('mask', 'top')}, density {row['density']:g}"
    if row.get("mask") == "none":
        told["mask_named"] = "no mask"
    if row.get("p50_ms"):
        told["ms"] = f"{row['p50_ms']:,.{1 if row.get('host_us') is None else 3}f}"
    if "batch_size" in row and "ms" in told:
        batches = row.get("published_batch", row["batch_size"]) / row["batch_size"]
        told["published_hours"] = 50_000 * row["p50_ms"] * batches / 3.6e6
    return told


def _cell(template: str, told: Row) -> str:
    try:
        return template.format_map(told)
    except (KeyError, TypeError):  # no such figure, or None
        return "-"


def markdown(rows: list[Row]) -> str:
    """A table of the checked rows, the first column to the left; "" if there are none."""
    told = [_told(row, rows) for row in rows if row["provider"] not in _OVER]
    told = [row for row in told if "ms" in row and row["match"]]
    if not told:
        return ""
    columns = {head: [_cell(cell, row) for row in told] for head, cell in _COLUMNS.items()}
    columns = {
        head: cells
        for head, cells in columns.items()
        if set(cells) != {"-"} and not (head in _NAMES and len(set(cells)) == 1)
    }
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [list(columns), rule, *zip(*columns.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _measured_on(result: Result) -> str:
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


def render(text: str) -> str:
    """A page with every table made anew.

    Raises:
        SystemExit: a row failed its gate.
    """
    place = r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(place, lambda at: f"{at[1]}{_of_files(at[2])}{at[3]}", text, flags=re.S)


def _of_files(name: str) -> str:
    paths = [RESULTS / f"{name}-cpu.json"]
    if name == "cards":
        paths = sorted(set(RESULTS.glob("*.json")) - set(RESULTS.glob("*-cpu.json")))
    text = ""
    for path in filter(Path.exists, paths):
        result = json.loads(path.read_text())
        if wrong := [row for row in result["rows"] if row.get("match") is False]:
            raise SystemExit(f"{path.name}: a row that failed its gate: {wrong[0]}")
        if table := markdown(result["rows"]):
            text += f"{table}\n\n{result.get('caption', 'Medians.')} {_measured_on(result)}\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    arguments = parser.parse_args()
    stale = 0
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        before = page.read_text()
        after = render(before)
        if after == before:
            continue
        stale = 1
        if arguments.check:
            print(f"{page.relative_to(ROOT)}: a table is stale; run python benchmarks/tables.py")
        else:
            page.write_text(after)
    return stale if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
