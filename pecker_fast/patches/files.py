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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import parse_json, shown
from pecker_fast.masks.files import (
    UNEXPECTED,
    read_own,
    stored_shape,
    unreadable,
)
from pecker_fast.masks.packing import Bits, bitmask, positions_of_gaps, smallest, unpacked
from pecker_fast.masks.stats import ParameterStats
from pecker_fast.torch_files import save_tensors

__all__ = [
    "Patch",
    "TensorRecord",
    "digest_of_bits",
    "digest_of_records",
    "flat_bits",
    "integer_dtype",
    "patch_bytes",
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
    # Name -> (ceil(numel / 8),) uint8, for the tensors with salient entries.
    bits: Mapping[str, Bits]
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

    def salient(self, name: str) -> npt.NDArray[np.bool_]:
        """(numel,) bool, True where the tensor `name` (one of `values`) is salient."""
        return unpacked(self.bits[name], self.tensors[name].shape.numel())


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


def patch_bytes(stats: Iterable[ParameterStats], element_size: int = 4) -> int:
    """Bytes of bitmasks and values in the patch of a mask, without the file's header.

    Gaps in place of bitmasks make the file smaller than that.
    """
    return sum((row.numel + 7) // 8 + row.nnz * element_size for row in stats if row.nnz)


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
    gaps = False
    for name, bits in patch.bits.items():
        numel = 8 * bits.size  # to the end of the last byte
        salient = np.flatnonzero(unpacked(bits.view(np.uint8), numel))
        packed = smallest(torch.from_numpy(salient.astype(np.int32)), numel)
        content[f"mask.{name}" if packed is None else f"gaps.{name}"] = (
            bits if packed is None else packed
        )
        gaps = gaps or packed is not None
    metadata = {
        "format": FORMAT,
        "version": VERSIONS[1] if gaps else VERSIONS[0],
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
    metadata, content = read_own(path, "patch", VERSIONS, "pecker_fast.save_patch")
    try:
        digest = metadata.pop("digest")
        intact = _digest_of_file(metadata, content) == digest
        tensors = {
            name: _record(name, *row)
            for name, *row in parse_json(metadata["tensors"], f"patch file {file_name!r}")
        }
        patch = Patch(
            path=file_name,
            tensors=tensors,
            bits=_with_prefix(content, "mask.") | _bits_of_gaps(content, tensors),
            values=_with_prefix(content, "values."),
            about=_about(parse_json(metadata["about"], f"patch file {file_name!r}")),
            package=metadata["package"],
            mask=metadata.get("mask", ""),
            digest=digest,
        )
        intact = intact and _consistent(patch)
    except PeckerError:
        raise
    except UNEXPECTED as error:
        raise unreadable("patch", file_name, error) from error
    if not intact:
        raise PeckerError(
            f"patch file {file_name!r} is damaged: its content does not match its digest; copy it "
            "again"
        )
    return patch


def _record(name: object, shape: object, dtype: str, base: str, *result: str) -> TensorRecord:
    """What a file says of a tensor; ValueError or LookupError where that makes no sense."""
    digests = [base, *(result or [base])]
    if len(digests) != 2 or not all(isinstance(digest, str) for digest in digests):
        raise ValueError(f"{shown(name)} has the digests {shown(digests)}")
    _ITEMSIZES[dtype]  # a KeyError where there is no such dtype
    return TensorRecord(stored_shape(name, shape), dtype, *digests)


def _about(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"about must be an object, got {shown(content)}")
    return content


def _with_prefix(content: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}


def _bits_of_gaps(
    content: Mapping[str, npt.NDArray[Any]], tensors: Mapping[str, TensorRecord]
) -> dict[str, Bits]:
    """Bitmasks of the tensors whose gaps are stored; ValueError or LookupError where none fit."""
    sizes = {name: tensors[name].shape.numel() for name in _with_prefix(content, "gaps.")}
    return {
        name: bitmask(positions_of_gaps(content[f"gaps.{name}"], numel), numel)
        for name, numel in sizes.items()
    }


def _consistent(patch: Patch) -> bool:
    """Whether positions and values are as many, and as wide, as the records say."""
    if patch.bits.keys() != patch.values.keys() or not patch.numel:
        return False
    for name, bits in patch.bits.items():
        record, values = patch.tensors[name], patch.values[name]
        numel = record.shape.numel()
        integer = _INTEGERS[_ITEMSIZES[record.dtype]]
        if bits.shape != ((numel + 7) // 8,) or bits.dtype != np.uint8:
            return False
        if values.ndim != 1 or values.dtype.name != str(integer).removeprefix("torch."):
            return False
        if np.count_nonzero(patch.salient(name)) != values.size:
            return False
    return True


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
