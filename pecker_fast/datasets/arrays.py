"""Arrays out of .npz files: of numbers and texts, never of Python objects."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pecker_fast.datasets.pixels import check_memory
from pecker_fast.errors import PeckerError

__all__ = ["read_arrays"]

_LARGE, _MOST_PACKED = 64 << 20, 200
"""Bytes of an array from which on it is looked at how far it is compressed, and the most."""


def read_arrays(path: Path, names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of the named arrays that an .npz file holds.

    Raises:
        PeckerError: no such file, no .npz, damaged, encrypted, larger than the memory, or an array
            of Python objects.
    """
    if not path.is_file():
        raise PeckerError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(sum(part.file_size for part in archive.infolist()), path)
            for part in archive.infolist():
                if part.file_size > max(_LARGE, _MOST_PACKED * part.compress_size):
                    raise PeckerError(
                        f"{path}: {part.filename[:100]!r} is {part.compress_size:,} bytes that "
                        f"stand for {part.file_size:,}, which no images do; write it again"
                    )
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except PeckerError:
        raise
    except Exception as error:  # numpy, zipfile and its decompressors raise many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PeckerError(f"{path}: cannot be read as an .npz file ({reason})") from error
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise PeckerError(f"{path}: {other[0]} is no array; write the file with numpy.savez")
    return arrays
