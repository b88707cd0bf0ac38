"""Run a part of the plan where there is a card: python tools/gpu/run.py PART --out FOLDER.

    python3 tools/gpu/run.py --list
    python3 tools/gpu/run.py 1 --out results --kit kit      # the folder that prepare.py made

Nothing is installed. FOLDER gets a log for each command and the benchmarks' own files, written
after each row, of which merge.py makes the results of the card. The exit code is 1 if a command
failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from plan import PART_SECONDS, PARTS, Command

LEAST_SECONDS = 10
"""What must be left of a part's time for a command to begin."""

ROOT = Path(__file__).resolve().parents[2]


def unpack(kit: Path | None) -> tuple[str, dict[str, str]]:
    """Put the compiled modules in their places; the commit, and the environment of commands."""
    paths, commit = [str(ROOT)], "unknown"
    if kit is not None:
        paths.append(str(kit / "site"))
        commit = (kit / "commit").read_text().strip()
        for module in (kit / "modules").iterdir():
            shutil.copy(module, ROOT / "pecker_fast" / module.name)
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, [*paths, known]))
    return commit, {**os.environ, "PYTHONPATH": path, "PECKER_REQUIRE_GPU": "1"}


def words(command: Command, commit: str, rows: Path) -> list[str]:
    """The command as a list; a benchmark writes its rows to that file."""
    values = {"python": sys.executable, "commit": commit, "json": str(rows)}
    return [word.format(**values) for word in shlex.split(command.line)]


def run(words: list[str], log: Path, seconds: float, environment: dict[str, str]) -> int | str:
    """Its exit code, or that its time was up; all it started ends with it."""
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {seconds:.0f} s"


def run_part(number: int, out: Path, kit: Path | None) -> bool:
    """Whether every command of the part ended well."""
    commit, environment = unpack(kit)
    begin, good = time.monotonic(), True
    print(f"part {number}: {PARTS[number - 1].title}", flush=True)
    for index, command in enumerate(PARTS[number - 1].commands, 1):
        left = PART_SECONDS - (time.monotonic() - begin)
        if command.needs is not None and shutil.which(command.needs) is None:
            found: int | str = f"no {command.needs}"
        elif left < LEAST_SECONDS:
            found = "no time"
        else:
            rows = out / f"part{number}-{index}.rows.json"
            rows.unlink(missing_ok=True)
            log = out / f"part{number}-{index}.log"
            found = run(words(command, commit, rows), log, left, environment)
            good &= found == 0
        print(f"{found!s:>20}  {command.line}\n{'':22}-> {command.expect}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = range(1, len(PARTS) + 1)
    parser.add_argument("part", nargs="*", type=int, default=[*parts], metavar="PART")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-results")
    parser.add_argument("--kit", type=Path, help="the folder of prepare.py")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    arguments = parser.parse_args()
    if unknown := [number for number in arguments.part if number not in parts]:
        parser.error(f"no part {unknown[0]}: expected 1 to {len(PARTS)}")
    if arguments.list:
        for number in arguments.part:
            print(f"{number}. {PARTS[number - 1].title}")
            for command in PARTS[number - 1].commands:
                print(f"   {command.line}\n      -> {command.expect}")
        return 0
    out = arguments.out.resolve()  # commands run in the sources' folder
    kit = arguments.kit and arguments.kit.resolve()
    out.mkdir(parents=True, exist_ok=True)
    return 0 if all([run_part(number, out, kit) for number in arguments.part]) else 1


if __name__ == "__main__":
    sys.exit(main())
