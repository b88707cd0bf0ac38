"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "replacing_folder", "write_text"]


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
