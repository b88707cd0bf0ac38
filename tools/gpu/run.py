"""Run a part of the plan where there is a card: python tools/gpu/run.py PART --out FOLDER.

    python3 tools/gpu/run.py --list
    python3 tools/gpu/run.py 1 --out results --kit kit      # the folder that prepare.py made
    python3 tools/gpu/run.py all --out results --rehearse   # on this CPU: does every command run?

Nothing is installed. FOLDER gets partN.json, written after each command, a log for each, and the
benchmarks' own files, written after each row, of which merge.py makes the results of the card.
The exit code is 1 if a command failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from plan import PART_SECONDS, PARTS, REHEARSED, Command, predicted

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
    return commit, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*paths, known]))}


def words(command: Command, rehearse: bool, values: dict[str, str]) -> list[str]:
    """The command as a list; rehearsed, it is a small one."""
    line = command.line
    if rehearse:
        line = line[line.index("{python}") :]  # without a profiler
        for name, other in REHEARSED.items():
            line = line.replace(name, other)
        if "pytest" in line:
            line += " --collect-only -p no:cacheprovider"
        elif "{json}" in line:
            line += " --repeats 1"
    return [word.format(**values) for word in shlex.split(line)]


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


def measured(path: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark's file so far, each with what was predicted."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    names = ("benchmark", "preset", "mask", "density", "provider", "match", "skipped", "p50_ms")
    return [
        {name: row[name] for name in names if name in row} | {"predicted_ms": predicted(row)}
        for row in rows
    ]


def run_part(number: int, arguments: argparse.Namespace) -> bool:
    """Whether every command of the part ended well."""
    part, out = PARTS[number - 1], arguments.out
    commit, environment = unpack(arguments.kit)
    if not arguments.rehearse:
        environment["PECKER_REQUIRE_GPU"] = "1"
    device = "cpu" if arguments.rehearse else "cuda"
    done: list[dict[str, Any]] = []
    begin, good = time.monotonic(), True
    print(f"part {number}: {part.title}", flush=True)
    for index, command in enumerate(part.commands, 1):
        name = f"part{number}-{index}"
        file, log = out / f"{name}.rows.json", out / f"{name}.log"
        record: dict[str, Any] = {"expect": command.expect}
        lacks = command.needs and not arguments.rehearse and shutil.which(command.needs) is None
        left = PART_SECONDS - (time.monotonic() - begin)
        if lacks or left < LEAST_SECONDS:
            record |= {
                "command": command.line,
                "exit": f"no {command.needs}" if lacks else "no time",
            }
        else:
            file.unlink(missing_ok=True)
            values = {"python": sys.executable, "device": device, "commit": commit}
            chosen = words(command, arguments.rehearse, values | {"json": str(file)})
            record["command"] = shlex.join(chosen)
            started = time.monotonic()
            record["exit"] = run(chosen, log, left, environment)
            record["seconds"] = round(time.monotonic() - started, 1)
            record["last_lines"] = log.read_text(errors="replace").splitlines()[-3:]
            record["rows"] = measured(file)
            good &= record["exit"] == 0
        done.append(record)
        found = {"part": number, "title": part.title, "commit": commit, "commands": done}
        (out / f"part{number}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"  {record['exit']!s:>20}  {record.get('seconds', 0):6.1f} s  {command.line}",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["all", *(str(number) for number in range(1, len(PARTS) + 1))]
    parser.add_argument("part", nargs="?", default="all", choices=parts)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-results")
    parser.add_argument("--kit", type=Path, help="the folder of prepare.py")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, small, tests collected"
    )
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    arguments = parser.parse_args()
    numbers = range(1, len(PARTS) + 1) if arguments.part == "all" else [int(arguments.part)]
    if arguments.list:
        for number in numbers:
            print(f"{number}. {PARTS[number - 1].title}")
            for command in PARTS[number - 1].commands:
                print(f"   {command.line}\n      -> {command.expect}")
        return 0
    arguments.out = arguments.out.resolve()  # commands run in the sources' folder
    arguments.kit = arguments.kit and arguments.kit.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return 0 if all([run_part(number, arguments) for number in numbers]) else 1


if __name__ == "__main__":
    sys.exit(main())
