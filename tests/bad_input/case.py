"""What a case of bad input is, and what must not happen to it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bad_input.zygote import MEGABYTES, SECONDS, Ended

__all__ = ["Case", "check", "leave_alone", "prepare", "snapshot"]

Change = Callable[[Path], object]

LONGEST = 640
"""Characters of an error's line, paths included."""

_OURS = re.compile(r"pecker-fast( \(rank [^)]*\))?: ")
_BAR = re.compile(r"\d+%\||\dit[/ ]|it/s|\d+it \[|\r")


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        id: short, unique within its kind.
        arguments: the command line, started in the folder of the case.
        needs: names of what `seeds` makes that are copied into the folder.
        change: what spoils it.
        named: what the line must name.
        code: the exit status; (0, 2) where it may be refused as well as not.
        writes: what may be there in the end that was not, as patterns of `Path.match` from the
            folder on; all that lies in a folder of that name counts. Also what may be changed.
        options: of the process, see `zygote._child`.
    """

    id: str
    arguments: Sequence[str]
    needs: Sequence[str] = ()
    change: Change | None = None
    named: Sequence[str] = ()
    code: int | tuple[int, ...] = 2
    writes: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[int, ...]:
        """The exit statuses that it may have."""
        return (self.code,) if isinstance(self.code, int) else self.code


def prepare(case: Case, seeds: Path, root: Path) -> Path:
    """Build the case below `root`; returns the folder that its command is started in."""
    folder = root / "work"
    for name in ("work", "home", "tmp"):
        (root / name).mkdir()
    leave_alone(root / "precious.txt")
    leave_alone(folder / "precious.txt")
    for name in case.needs:
        source = seeds / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    if case.change is not None:
        case.change(folder)
    if case.options.get("nobody") and os.geteuid() == 0:
        for place in (root, *root.rglob("*")):
            os.chown(place, 65534, 65534, follow_symlinks=False)
    return folder


def leave_alone(path: Path) -> None:
    """Write a file that no command may touch."""
    path.write_text(f"{path.name} is precious\n")


def snapshot(root: Path) -> dict[str, str]:
    """Every path below `root` with what it is and holds."""
    return dict(_described(root))


def _described(root: Path) -> Iterator[tuple[str, str]]:
    for place in sorted(root.rglob("*")):
        name, mode = place.relative_to(root).as_posix(), place.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield name, f"link to {os.readlink(place)}"
        elif stat.S_ISREG(mode):
            yield name, hashlib.blake2b(place.read_bytes()).hexdigest()
        else:
            yield name, oct(stat.S_IFMT(mode))


def check(case: Case, ended: Ended, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with how a case ended; empty where nothing is."""
    found = []
    if ended.code < 0:
        found.append(f"killed by signal {-ended.code}")
    elif ended.code not in case.codes:
        found.append(f"exit status {ended.code}, expected {case.code}")
    if ended.seconds > 2 * SECONDS:
        found.append(f"{ended.seconds:.0f} s")
    if ended.megabytes > MEGABYTES:
        found.append(f"{ended.megabytes:,.0f} MB")
    found += _wrong_words(case, ended)
    found += _wrong_files(case, before, after)
    return found


def _wrong_words(case: Case, ended: Ended) -> Iterator[str]:
    lines = [line for line in ended.err.split("\n") if line.strip() and not _BAR.search(line)]
    said = "\n".join(lines)
    for word in ("internal error", "Traceback", "Warning", "Exception ignored", "<frozen"):
        # Ours says which older checkpoint is taken; those of runs that succeed are notes.
        is_note = word == "Warning" and (ended.code == 0 or "trying older" in said)
        if word in said and not is_note:
            yield f"says {word!r}"
    for stream in (said, ended.out.replace("\n", "")):
        if strange := sorted({c for c in stream if _is_control(c)} - {"\n"}):
            yield f"control characters {strange}"
    streams = {"stdout", "stderr"} & case.options.keys()
    if ended.code == 0 or streams:
        return
    if is_usage := ended.err.startswith("Usage: "):
        messages = [line for line in lines if line.startswith("Error: ")]
    else:
        messages = [line for line in lines if _OURS.match(line)]
    if len(messages) != 1 or messages[0] != lines[-1]:
        yield "no single line at the end says why"
        return
    if not is_usage and ended.out:
        yield f"prints {ended.out[:80]!r} and fails"
    if len(messages[0]) > LONGEST:
        yield f"a line of {len(messages[0]):,} characters"
    for word in case.named:
        if word.lower() not in messages[0].lower():
            yield f"does not name {word!r}"


def _is_control(character: str) -> bool:
    # Directions of text ("Cf") can make a line look like another one.
    kind = unicodedata.category(character)
    return kind == "Cc" or (kind == "Cf" and character != "\u00ad")


def _wrong_files(case: Case, before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        if _may_write(case, name) and ".tmp" not in name and "-partial" not in name:
            continue
        what = "removed" if name not in after else "changed" if name in before else "left behind"
        yield f"{what}: {name}"


def _may_write(case: Case, name: str) -> bool:
    path = Path(name)
    places = [path, *path.parents]
    return any(Path("work", pattern) == place for pattern in case.writes for place in places) or (
        any(
            place.match(f"work/{pattern}")
            for pattern in case.writes
            for place in places
            if "*" in pattern
        )
    )
