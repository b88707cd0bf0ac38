"""Runs a command line of bad input in a process of its own, and says what is wrong with its end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import stat
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case", "Ended", "check", "leave_alone", "prepare", "run", "snapshot"]

SECONDS = 60
_ADDRESSES = 3 << 30  # bytes beyond those of what it is forked from
_LONGEST = 640  # characters of an error's line, paths included
_OURS = re.compile(r"pecker-fast( \(rank [^)]*\))?: ")
_BAR = re.compile(r"\d+%\||\dit[/ ]|it/s|\d+it \[|\r")


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        id: short and unique.
        arguments: the command line, started in the folder of the case.
        needs: names of what `seeds` makes that are copied into the folder.
        change: what spoils it.
        named: words that the line must name.
        codes: the exit statuses that it may have.
        writes: what may be there in the end that was not, or be changed, as paths in the folder.
        environment: variables to set; None to remove one.
    """

    id: str
    arguments: Sequence[str]
    needs: Sequence[str] = ()
    change: Callable[[Path], object] | None = None
    named: Sequence[str] = ()
    codes: Sequence[int] = (2,)
    writes: Sequence[str] = ()
    environment: Mapping[str, str | None] | None = None


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int  # minus the signal that killed it
    out: str
    err: str


def prepare(case: Case, seeds: Path, root: Path) -> Path:
    """Build the case below `root`; returns the folder that its command is started in."""
    folder = root / "work"
    for name in ("work", "home", "tmp"):
        (root / name).mkdir()
    leave_alone(root / "precious.txt")
    leave_alone(folder / "precious.txt")
    for name in case.needs:
        copy = shutil.copytree if (seeds / name).is_dir() else shutil.copy
        copy(seeds / name, folder / name)
    if case.change is not None:
        case.change(folder)
    return folder


def leave_alone(path: Path) -> None:
    """Write a file that no command may touch."""
    path.write_text(f"{path.name} is precious\n")


def run(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str | None] | None = None
) -> Ended:
    """Run a command line in a folder, with a limit of memory and of time."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as log:
        for name in ("out", "err"):
            Path(log, name).touch()
        given = (str(folder), list(arguments), dict(environment or {}), log)
        process = context.Process(target=_child, args=given)
        process.start()
        process.join(SECONDS)
        process.kill()
        process.join()
        out, err = (Path(log, n).read_bytes().decode(errors="replace") for n in ("out", "err"))
        return Ended(process.exitcode or 0, out, err)


def _child(folder: str, arguments: list[str], environment: dict[str, str | None], log: str) -> None:
    os.chdir(folder)
    os.environ.pop("TRITON_INTERPRET", None)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    for number, place in enumerate((os.devnull, f"{log}/out", f"{log}/err")):
        os.dup2(os.open(place, os.O_RDWR), number)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in ((resource.RLIMIT_AS, addresses + _ADDRESSES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    code = 99
    logging.getLogger("transformers").setLevel(logging.ERROR)  # as `main` has it
    try:
        from pecker_fast import cli

        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def snapshot(root: Path) -> dict[str, str]:
    """Every path below `root` with what it is and holds."""
    found = {}
    for place in sorted(root.rglob("*")):
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            held = f"link to {os.readlink(place)}"
        elif stat.S_ISREG(mode):
            held = hashlib.blake2b(place.read_bytes()).hexdigest()
        else:
            held = oct(stat.S_IFMT(mode))
        found[place.relative_to(root).as_posix()] = held
    return found


def check(case: Case, ended: Ended, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with how a case ended; empty where nothing is."""
    found = []
    if ended.code not in case.codes:
        found.append(f"exit status {ended.code}, expected {case.codes}")
    return [*found, *_wrong_words(case, ended), *_wrong_files(case, before, after)]


def _wrong_words(case: Case, ended: Ended) -> Iterator[str]:
    lines = [line for line in ended.err.split("\n") if line.strip() and not _BAR.search(line)]
    said = "\n".join(lines)
    for word in ("internal error", "Traceback", "Warning", "Exception ignored", "<frozen"):
        # Ours says which older checkpoint is taken; those of runs that succeed are notes.
        is_note = word == "Warning" and (ended.code == 0 or "trying older" in said)
        if word in said and not is_note:
            yield f"says {word!r}"
    for stream in (said, ended.out.replace("\n", "")):
        # Directions of text ("Cf") can make a line look like another one.
        if strange := {c for c in stream if unicodedata.category(c) in ("Cc", "Cf")} - {
            *"\n\u00ad"
        }:
            yield f"control characters {strange}"
    if ended.code == 0:
        return
    is_usage = ended.err.startswith(("Usage: ", "Error: "))
    messages = [line for line in lines if _OURS.match(line) or line.startswith("Error: ")]
    if len(messages) != 1 or messages[0] != lines[-1]:
        yield "no single line at the end says why"
        return
    if not is_usage and ended.out:
        yield f"prints {ended.out[:80]!r} and fails"
    if len(messages[0]) > _LONGEST:
        yield f"a line of {len(messages[0]):,} characters"
    for word in case.named:
        if word.lower() not in messages[0].lower():
            yield f"does not name {word!r}"


def _wrong_files(case: Case, before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        path = Path(name)
        places = {place.as_posix() for place in (path, *path.parents)}
        allowed = not places.isdisjoint(f"work/{each}" for each in case.writes)
        if before.get(name) != after.get(name) and not (allowed and ".tmp" not in name):
            what = "removed" if name not in after else "changed" if name in before else "left"
            yield f"{what}: {name}"
