"""Patch files: what an erased network differs from its base in.

A safetensors file. For each tensor with salient entries it holds two:

    mask.NAME    uint8, 1 bit per entry in logical order, as in a mask file; or gaps.NAME, the gaps
                 between salient entries (`masks.packing`), where they are smaller
    values.NAME  integers as wide as the tensor's dtype: the bits of the base's value XOR those of
                 the erased value, one for each salient entry, in logical order

Tensors without salient entries take a line of the metadata each: name, shape, dtype and digest of
every parameter and persistent buffer of the base are there, with the digest of the result where it
differs. The XOR takes the room of the erased values alone, works for every dtype, -0.0 and NaN
included, and undoes itself; it means nothing without the base. Version 1 has no gaps, and is what
is written where there are none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import parse_json, shown
from pecker_fast.masks.files import UNEXPECTED, read_own, stored_shape, unreadable
from pecker_fast.masks.packing import bitmask, positions_of_gaps, smallest, unpacked
from pecker_fast.torch_files import save_tensors

__all__ = [
    "Patch",
    "TensorRecord",
    "digest_of_bits",
    "digest_of_records",
    "flat_bits",
    "integer_dtype",
    "read_patch",
    "write_patch",
]

FORMAT = "pecker_fast.patch"
VERSIONS = ("1", "2")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ITEMSIZES = {
    name: kind.itemsize for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)
}


class TensorRecord(NamedTuple):
    """What a patch knows of one parameter or buffer."""

    shape: torch.Size  # of the base's tensor
    dtype: str  # of the base's tensor, as torch names it: "float32"
    base: str  # SHA-256 (hex) of the base's entries in logical order
    result: str  # the same of the erased tensor; equal to `base` where nothing changes


@dataclass(frozen=True, eq=False)
class Patch:
    """The content of a patch file."""

    path: str
    # Name -> record, for every parameter and persistent buffer of the base. Names are without the
    # prefixes of `pecker_fast.masks.mask.PREFIXES`.
    tensors: Mapping[str, TensorRecord]
    # Name -> (nnz,) int32, sorted and flat, for the tensors with salient entries.
    positions: Mapping[str, Tensor]
    # Name -> (nnz,) integers, base XOR erased; the same names.
    values: Mapping[str, npt.NDArray[Any]]
    about: Mapping[str, Any]  # what the author of the patch said about it
    package: str  # version of pecker_fast that made it
    mask: str = ""  # digest of the mask that it was made with; "" in the first files
    digest: str = ""  # SHA-256 (hex) of all of the above except the path

    @cached_property
    def nnz(self) -> int:
        """The number of salient entries."""
        return sum(values.size for values in self.values.values())

    @cached_property
    def numel(self) -> int:
        """The number of entries of the base, salient and frozen."""
        return sum(record.shape.numel() for record in self.tensors.values())

    @cached_property
    def base(self) -> str:
        """Digest of the network that the patch may be applied to."""
        return digest_of_records(self.tensors, "base")

    @cached_property
    def result(self) -> str:
        """Digest of the network that it makes of the base."""
        return digest_of_records(self.tensors, "result")


def integer_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """The integer type of the tensor's width.

    Raises:
        PeckerError: the dtype is wider than 8 bytes.
    """
    if tensor.element_size() not in _INTEGERS:
        raise PeckerError(
            f"{name!r} is {tensor.dtype}: a patch takes entries of 1, 2, 4 or 8 bytes; convert it"
        )
    return _INTEGERS[tensor.element_size()]


def flat_bits(name: str, tensor: Tensor) -> Tensor:
    """(numel,) integers on the CPU, in logical order; may share the tensor's memory."""
    return tensor.detach().cpu().contiguous().view(integer_dtype(name, tensor)).flatten()


def digest_of_bits(bits: Tensor) -> str:
    """SHA-256 (hex) of a contiguous integer tensor on the CPU."""
    return hashlib.sha256(bits.numpy().data).hexdigest()


def write_patch(path: str | os.PathLike[str], patch: Patch) -> Patch:
    """Write a patch file, whole or not at all, and return the patch with its digest.

    Raises:
        PeckerError: it cannot be written, or `about` holds what JSON cannot.
    """
    try:
        about = json.dumps(dict(patch.about), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PeckerError(
            f"patch {os.fspath(path)!r}: what is said about it must be text and numbers ({error})"
        ) from error
    records = [
        [name, list(r.shape), r.dtype, r.base, *([r.result] if r.result != r.base else [])]
        for name, r in patch.tensors.items()
    ]
    content = {f"values.{name}": values for name, values in patch.values.items()}
    version = VERSIONS[0]
    for name, positions in patch.positions.items():
        numel = patch.tensors[name].shape.numel()
        if (packed := smallest(positions, numel)) is None:
            content[f"mask.{name}"] = bitmask(positions, numel)
        else:
            content[f"gaps.{name}"], version = packed, VERSIONS[1]
    metadata = {
        "format": FORMAT,
        "version": version,
        "package": patch.package,
        "base": patch.base,
        "result": patch.result,
        "mask": patch.mask,
        "nnz": str(patch.nnz),
        "about": about,
        "tensors": json.dumps(records, separators=(",", ":")),
    }
    digest = _digest_of_file(metadata, content)
    metadata["digest"] = digest
    save_tensors(path, content, metadata, "patch file")
    return replace(patch, digest=digest)


def read_patch(path: str | os.PathLike[str]) -> Patch:
    """Read a patch file and check every part of it.

    Raises:
        PeckerError: no such file, truncated, not a patch, of a later version, or its content does
            not match its digest.
    """
    file_name = os.fspath(path)
    source = f"patch file {file_name!r}"
    metadata, content = read_own(path, "patch", VERSIONS, "pecker_fast.save_patch")
    try:
        digest = metadata.pop("digest")
        if _digest_of_file(metadata, content) != digest:
            raise ValueError("its content does not match its digest; copy it again")
        rows = parse_json(metadata["tensors"], source)
        tensors = {name: _record(name, *row) for name, *row in rows}
        prefix = "values."
        names = [key.removeprefix(prefix) for key in content if key.startswith(prefix)]
        about = parse_json(metadata["about"], source)
        if not names or len(content) != 2 * len(names) or not isinstance(about, dict):
            raise ValueError("it does not hold positions and values of tensors")
        return Patch(
            path=file_name,
            tensors=tensors,
            positions={name: _positions(name, content, tensors[name]) for name in names},
            values={name: content[prefix + name] for name in names},
            about=about,
            package=metadata["package"],
            mask=metadata.get("mask", ""),
            digest=digest,
        )
    except PeckerError:
        raise
    except UNEXPECTED as error:
        raise unreadable("patch", file_name, error) from error


def _record(name: object, shape: object, dtype: str, base: str, *result: str) -> TensorRecord:
    """What a file says of a tensor; ValueError or LookupError where that makes no sense."""
    digests = [base, *(result or [base])]
    if len(digests) != 2 or not all(isinstance(digest, str) for digest in digests):
        raise ValueError(f"{shown(name)} has the digests {shown(digests)}")
    _ITEMSIZES[dtype]  # a KeyError where there is no such dtype
    return TensorRecord(stored_shape(name, shape), dtype, *digests)


def _positions(name: str, content: Mapping[str, npt.NDArray[Any]], record: TensorRecord) -> Tensor:
    """(nnz,) int32 positions of a tensor; ValueError or LookupError where its values do not fit."""
    numel, values = record.shape.numel(), content[f"values.{name}"]
    if f"gaps.{name}" in content:
        positions = positions_of_gaps(content[f"gaps.{name}"], numel)
    else:
        bits = content[f"mask.{name}"]
        if bits.shape != ((numel + 7) // 8,) or bits.dtype != np.uint8:
            raise ValueError(f"the mask of {shown(name)} is {bits.dtype} {bits.shape}")
        salient = np.flatnonzero(unpacked(bits, numel))
        positions = torch.from_numpy(salient.astype(np.int32))
    integer = str(_INTEGERS[_ITEMSIZES[record.dtype]]).removeprefix("torch.")
    if values.shape != (len(positions),) or values.dtype.name != integer:
        raise ValueError(
            f"the values of {shown(name)} are {values.dtype} {values.shape}, expected {integer} "
            f"({len(positions)},)"
        )
    return positions


def digest_of_records(tensors: Mapping[str, TensorRecord], which: Literal["base", "result"]) -> str:
    """SHA-256 (hex) of a network, of what is known of its tensors."""
    rows = sorted([n, list(r.shape), r.dtype, getattr(r, which)] for n, r in tensors.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _digest_of_file(metadata: Mapping[str, str], content: Mapping[str, npt.NDArray[Any]]) -> str:
    names = sorted(content)
    digest = hashlib.sha256(json.dumps([sorted(metadata.items()), names]).encode())
    for name in names:
        digest.update(np.ascontiguousarray(content[name]).data)
    return digest.hexdigest()
