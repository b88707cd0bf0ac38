"""Merge what run.py brought home into benchmarks/results/<card>.json: merge.py FOLDER.

Of rows that were measured twice the later file's count. Rows of another card are refused. Then
benchmarks/tables.py makes the pages' table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from plan import predicted
from rows import RESULTS, Result, same_case, slug, write_results


def merged(results: list[Result]) -> Result:
    """One result of several of the same card.

    Raises:
        SystemExit: they are of several cards or commits.
    """
    for key in ("device", "commit"):
        if len(found := {result["machine"][key] for result in results}) > 1:
            raise SystemExit(f"results of several: {key} {', '.join(sorted(found))}")
    rows: list[dict[str, Any]] = []
    for row in (row for result in results for row in result["rows"]):
        again = [old for old in rows if old["provider"] == row["provider"] and same_case(old, row)]
        rows = [old for old in rows if old not in again] + [row]
    failures = [failure for result in results for failure in result["failures"]]
    machine = results[0]["machine"]
    return {"machine": machine, "complete": False, "failures": failures, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.rows.json"))
    if not files:
        raise SystemExit(f"no *.rows.json in {arguments.folder}")
    result = merged([json.loads(file.read_text()) for file in files])
    path = arguments.into / f"{slug(result['machine']['device'])}.json"
    write_results(path, result)
    print(f"{path}: {len(result['rows'])} rows")
    for row in result["rows"]:
        if (guess := predicted(row)) is not None:
            low, high = guess
            found = row.get("p50_ms")
            good = "as predicted" if found and low <= found <= high else "OUTSIDE"
            case = f"{row['benchmark']} {row['preset']} {row.get('mask', '')} {row['density']:g}"
            print(f"{case} {row['provider']}: {found} ms, predicted {low:g} to {high:g}: {good}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
