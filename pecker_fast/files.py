"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pecker_fast.errors import PeckerError

__all__ = ["check_output_folder", "replacing", "replacing_folder", "write_text"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there if the block succeeds.

    A reader sees the old file or the new one, whatever happens in between. If the block raises, a
    full disk included, the temporary file is removed and `path` is as it was.
    """
    path = Path(path)
    # The suffix stays last: matplotlib and others take the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        # safetensors leaves its files readable by their owner only; the umask decides.
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new, hidden folder beside `path` to be filled, which takes its place: whole or not at all.

    If the block raises, what was there before stays.
    """
    partial, old = path.with_name(f".{path.name}-partial"), path.with_name(f".{path.name}-old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield partial
        probe = partial / ".mode"
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # safetensors leaves its files readable by their owner only
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


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
