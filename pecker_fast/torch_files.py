"""Files of tensors: no code in them is run, and tensors are what their bytes are.

Of what torch.save wrote torch's reader believes some things that a file says. A tensor of 4 bytes
may have 10^9 entries, by strides of 0; an archive may hold gigabytes in compressed kilobytes, which
torch.save never writes.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import replacing, shown

__all__ = ["check_stored", "load_torch", "open_tensors", "save_tensors"]

_ZIP = b"PK\x03\x04"
_FLAT = (torch.strided, torch.device("cpu"))


@contextmanager
def open_tensors(path: Path, remedy: str = "it may be truncated: copy it again") -> Iterator[Any]:
    """A safetensors file, read by torch; all that is read of it, in the block.

    Raises:
        PeckerError: it cannot be read, or has not what is asked for; the line ends in the remedy.
    """
    try:
        with open(path, "rb"), safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise PeckerError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        reason = str(error).partition("\n")[0][:300]
        raise PeckerError(
            f"{path}: cannot be read as a safetensors file ({reason}); {remedy}"
        ) from error


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    kind: str = "file",
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: the file.
        tensors: by name, contiguous tensors on the CPU, or arrays of numpy.
        metadata: texts by name.
        kind: what it is, for messages.

    Raises:
        PeckerError: it cannot be written (no such folder, read-only, disk full).
    """
    of_torch = any(isinstance(value, Tensor) for value in tensors.values())
    library = safetensors.torch if of_torch else safetensors.numpy
    try:
        with replacing(path) as temporary:
            library.save_file(dict(tensors), temporary, metadata=dict(metadata or {}) or None)
    except (OSError, SafetensorError) as error:
        raise PeckerError(f"cannot write {kind} {os.fspath(path)!r}: {error}") from error


def load_torch(path: Path) -> Any:
    """What `torch.load` makes of a file with `weights_only=True`, on the CPU.

    Raises:
        PeckerError: it is no regular file, or a compressed archive.
        Exception: of whatever kind torch raises for a damaged file, or one that would run code.
    """
    if not path.is_file():
        raise PeckerError(f"{path}: no such file")
    with open(path, "rb") as file:
        is_archive = file.read(len(_ZIP)) == _ZIP
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            is_program = any(part.filename.endswith("/constants.pkl") for part in parts)
            # torch.load does not read TorchScript, which is compressed, and says so.
            if not is_program and any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise PeckerError(
                    f"{path}: a compressed archive, which torch.save does not write; save the "
                    "weights again"
                )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says it
        # Mapped, so that what is not asked for, such as optimizers' moments, is never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)


def check_stored(name: str, tensor: Tensor, source: object) -> None:
    """Refuse a tensor that is no plain array whose entries all lie in the file.

    Raises:
        PeckerError: it is sparse, quantized, of a subclass, without memory, or repeats entries.
    """
    kind = type(tensor) in (Tensor, torch.nn.Parameter)
    if not kind or (tensor.layout, tensor.device) != _FLAT or tensor.is_quantized:
        raise PeckerError(
            f"{source}: {shown(name)} is a {tensor.layout} {type(tensor).__name__} on "
            f"{tensor.device}; expected plain tensors: save them after .to_dense() on the CPU"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise PeckerError(
            f"{source}: {shown(name)} says that it has {tensor.numel():,} entries, but the file "
            f"holds {tensor.untyped_storage().nbytes():,} bytes of it; save it after .contiguous()"
        )
