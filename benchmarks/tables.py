"""The tables of README.md and docs/*.md, made from benchmarks/results/*.json.

python benchmarks/tables.py            # rewrite them
python benchmarks/tables.py --check    # exit 1 if one is stale

A table's place is between <!-- table: NAME --> and <!-- end -->, on any of these pages; TABLES has
the names. It stays empty where there is no result file. Studies that ran once are no such tables:
their rows lie in results/, with the command and the commit that has it. The `..._gpu` tables have a
part for each card that gpu.py has measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import kernel_tables
import run_tables
from rows import RESULTS, Result

ROOT = Path(__file__).resolve().parent.parent
CARDS = "every card"  # the result files of gpu.py

# Name -> its result files, and what makes it of one.
TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "step_time": ("step_time-cpu", kernel_tables.step_time),
    "topk": ("topk-cpu", kernel_tables.topk),
    "iteration": ("iteration-cpu", run_tables.iteration),
    "published_runs": ("published_runs-cpu", run_tables.iteration),
    "memory": ("memory-cpu", run_tables.memory),
    "step_time_gpu": (CARDS, kernel_tables.step_time_of_card),
    "topk_gpu": (CARDS, kernel_tables.topk),
    "iteration_gpu": (CARDS, run_tables.iteration),
    "memory_gpu": (CARDS, run_tables.memory),
}


def render(text: str) -> str:
    """A page with every table made anew.

    Raises:
        SystemExit: a place for a table that there is not, or a row that failed its gate.
    """
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{_made(match[2])}{match[3]}",
        text,
        flags=re.S,
    )


def _made(name: str) -> str:
    if name not in TABLES:
        raise SystemExit(f"no table {name!r}: expected one of {', '.join(TABLES)}")
    source, table = TABLES[name]
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem != source and (source != CARDS or path.stem.endswith("-cpu")):
            continue
        result = json.loads(path.read_text())
        for row in result["rows"]:
            if row.get("match") is False:
                raise SystemExit(f"{path.name}: a row that failed its gate: {row}")
        parts.append(table(result))
    text = "\n\n".join(filter(None, parts))
    return f"{text}\n" if text else ""


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
