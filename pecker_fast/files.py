"""Files that are written whole or not at all, and text and JSON read within limits."""

from __future__ import annotations

import json
import os
import reprlib
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pecker_fast.errors import PeckerError

__all__ = [
    "MOST_DIGITS",
    "MOST_ENTRIES",
    "MOST_LEVELS",
    "check_extent",
    "check_output_file",
    "check_output_folder",
    "check_replaceable",
    "few",
    "parse_json",
    "read_json",
    "read_text",
    "remove_leftovers",
    "replacing",
    "replacing_folder",
    "shown",
    "write_text",
]

MOST_LEVELS = 64
"""How deep what a file holds may be nested."""

MOST_ENTRIES = 1_000_000
"""Of all its lists and objects."""

MOST_DIGITS = 40
"""Of a whole number in a file. Python reads as many as there are, in quadratic time."""

_MOST_BYTES = 16 << 20

_STEM = 40
"""Characters of a name that its temporary one begins with: both have the same limit."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside `path`; move it there if the block succeeds.

    A reader sees the old file or the new one, whatever happens in between. If the block raises, a
    full disk included, the temporary file is removed and `path` is as it was.

    Raises:
        PeckerError: `path` is something else than a file, which is not replaced.
    """
    path = Path(path)
    check_replaceable(path)
    # The suffix stays last: matplotlib and others take the format from it.
    name = f".{path.stem[:_STEM]}.{secrets.token_hex(8)}.tmp{path.suffix}"
    temporary = path.with_name(name)
    # Nobody who may write to the folder can have put a link there.
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
        try:
            # safetensors leaves its files readable by their owner only; the umask decides.
            os.fchmod(descriptor, stat.S_IMODE(mode))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to be made and filled, which then takes the place of `path`: whole or not at all.

    If the block raises, what was there before stays. It lies in a folder that nobody else can
    write to.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name[:_STEM]}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
    ) as workspace:
        new = Path(workspace, path.name)
        yield new
        probe = new / ".mode"
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        for file in new.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)  # safetensors leaves its files readable by their owner only
        if path.exists():
            path.rename(Path(workspace, "old"))
        new.rename(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left half-written in a folder that is ours alone."""
    for leftover in folder.glob(".*.tmp*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def check_output_folder(
    path: Path, force: bool, *, writes: Collection[str], reads: Sequence[Path]
) -> None:
    """Check before any work is done that `path` can become a folder, or replace one.

    Args:
        path: the folder.
        force: whether one that is there may be deleted: only if it holds nothing but files that
            the caller writes.
        writes: these files, relative to the folder.
        reads: files and folders that the caller reads, which must outlive it.

    Raises:
        PeckerError: it exists (without `force`), holds other files or what is read, is a file or a
            link, or its parent is missing.
    """
    if path.is_symlink():
        raise PeckerError(f"{path}: is a link; name the folder itself")
    if path.exists() and not path.is_dir():
        raise PeckerError(f"{path}: is a file; give the name of a folder")
    if path.exists() and not force:
        raise PeckerError(f"{path}: exists; add --force to replace it")
    if not path.absolute().parent.is_dir():
        raise PeckerError(f"{path.absolute().parent}: no such folder; make it first")
    for read in reads:
        if path.resolve() in read.resolve().parents:
            raise PeckerError(
                f"{read}: lies in {path}, which --force deletes; choose another --out"
            )
    for found in sorted(path.rglob("*")):
        name = found.relative_to(path).as_posix()
        if name not in writes and (found.is_symlink() or not found.is_dir()):
            raise PeckerError(
                f"{path}: holds {name!r}, which this command does not write; --force replaces only "
                "what it wrote: choose another --out, or delete the folder yourself"
            )


def check_output_file(path: Path, force: bool) -> Path:
    """Check before any work is done that `path` can become a file, and return it.

    Raises:
        PeckerError: it exists (without `force`), is no file, or its folder is missing or cannot be
            written to.
    """
    check_replaceable(path)
    if path.exists() and not force:
        raise PeckerError(f"{path}: exists; add --force to replace it")
    if not path.parent.is_dir():
        raise PeckerError(f"{path.parent}: no such folder; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PeckerError(f"{path.parent}: cannot be written to; choose another folder")
    return path


def check_replaceable(path: Path) -> None:
    """Check that a file can be written in the place of `path`.

    Raises:
        PeckerError: a folder, a link, a device or a pipe is there, which others may need.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # whoever creates it says what is wrong with its folder
    if stat.S_ISDIR(mode):
        raise PeckerError(f"{path}: is a folder; give the name of a file")
    if stat.S_ISLNK(mode):
        raise PeckerError(f"{path}: is a link; name the file itself")
    if not stat.S_ISREG(mode):
        raise PeckerError(f"{path}: is a device or a pipe; give the name of a file")


def read_text(path: str | os.PathLike[str], most: int = _MOST_BYTES) -> str:
    """A text file, UTF-8.

    Args:
        path: a regular file; a pipe, which may never end, is refused.
        most: bytes that it may have.

    Raises:
        PeckerError: it is missing, no file, too large, not readable, or not UTF-8.
    """
    file = Path(path)
    try:
        if not file.is_file():
            is_there = file.exists()
            raise PeckerError(f"{file}: {'is no regular file' if is_there else 'no such file'}")
        with open(file, "rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise PeckerError(
            f"{file}: cannot be read ({error.strerror or error}); look at its permissions"
        ) from error
    if len(content) > most:
        raise PeckerError(f"{file}: larger than the {most >> 20} MiB that such a file may have")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PeckerError(
            f"{file}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds, as `parse_json` reads it.

    Raises:
        PeckerError: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), os.fspath(path))


def parse_json(text: str, source: str) -> Any:
    """Objects, lists, texts, numbers and None that a JSON text stands for.

    Args:
        text: the JSON.
        source: where it comes from, for messages.

    Raises:
        PeckerError: not JSON, nested deeper than `MOST_LEVELS`, or a number of more than
            `MOST_DIGITS` digits.
    """
    try:
        content = json.loads(text, parse_int=_whole_number)
        check_extent(content)
        if r"\u" in text:  # half of a surrogate pair is no text, and could not be written again
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PeckerError(
            f"{source}: damaged, not valid JSON ({reason}); restore the file"
        ) from error
    return content


def shown(value: object) -> str:
    """A value from outside as a message shows it: its `repr`, cut where that would be long."""
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def few(names: Iterable[str], limit: int = 3) -> str:
    """The first names of a list, quoted and each cut where it is long, and how many more."""
    listed = list(names)
    first = ", ".join(shown(name) for name in listed[:limit])
    return first + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 120, 120, MOST_DIGITS
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = 4


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def check_extent(content: Any) -> None:
    """Refuse what is nested too deeply, or holds too much once shared parts are written out.

    Raises:
        ValueError: it does.
    """
    level, entries = [content], 0
    for _ in range(MOST_LEVELS):
        inner = [part for part in level if isinstance(part, (dict, list))]
        entries += sum(len(part) for part in inner)
        if not inner:
            return
        if entries > MOST_ENTRIES:
            raise ValueError(f"more than {MOST_ENTRIES:,} entries")
        level = [
            item for part in inner for item in (part.values() if isinstance(part, dict) else part)
        ]
    raise ValueError(f"nested deeper than {MOST_LEVELS} levels")
