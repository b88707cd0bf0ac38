"""Masks in files: our own safetensors bitmasks, and SalUn's dictionaries of 0/1 tensors.

A mask file holds one tensor per parameter: uint8, 1 bit per entry in logical order, the first entry
in the lowest bit; or, where that is smaller, the gaps between salient entries (`packing`), of the
parameters that the metadata `gaps` list. The metadata name the format, its version, every shape and
the digest, too. Version 1 has bitmasks only, and is written where there are no gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, parse_json, shown
from pecker_fast.masks.packing import Bits, bitmask, positions_of_gaps, smallest, unpacked
from pecker_fast.masks.select import check_granularity, check_numel
from pecker_fast.torch_files import check_stored, load_torch, save_tensors

__all__ = [
    "UNEXPECTED",
    "MaskContent",
    "digest_of",
    "match_names",
    "positions_from_dense",
    "read_dense",
    "read_mask",
    "read_own",
    "saved_by_torch",
    "stored_shape",
    "strip_prefixes",
    "unreadable",
    "write_mask",
]

FORMAT = "pecker_fast.mask"
VERSIONS = ("1", "2")
_MOST_DIMENSIONS = 64  # as torch
UNEXPECTED = (LookupError, AttributeError, TypeError, ValueError)
"""What reading metadata raises that are not as they should be."""


class MaskContent(NamedTuple):
    """What a mask file holds, checked."""

    indices: dict[str, Tensor]
    shapes: dict[str, torch.Size]
    granularity: str
    block_size: int
    digest: str


def digest_of(shapes: Mapping[str, torch.Size], bits: Mapping[str, Bits]) -> str:
    """SHA-256 of names, shapes and bitmasks; the order of the parameters does not matter."""
    names = sorted(shapes)
    digest = hashlib.sha256(json.dumps([[name, list(shapes[name])] for name in names]).encode())
    for name in names:
        digest.update(bits[name].data)
    return digest.hexdigest()


def write_mask(
    path: str | os.PathLike[str],
    indices: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    metadata: Mapping[str, str],
) -> None:
    """Write a mask file, whole or not at all.

    Raises:
        PeckerError: it cannot be written (no such folder, read-only, disk full).
    """
    content, gaps = {}, []
    for key, positions in indices.items():
        numel = shapes[key].numel()
        packed = smallest(positions, numel)
        if packed is not None:
            gaps.append(key)
        content[key] = bitmask(positions, numel) if packed is None else packed
    header = {
        "format": FORMAT,
        "version": VERSIONS[1] if gaps else VERSIONS[0],
        **({"gaps": json.dumps(gaps)} if gaps else {}),
        # The safetensors header sorts tensors by name; this keeps the model's order.
        "shapes": json.dumps([[name, list(shape)] for name, shape in shapes.items()]),
        **metadata,
    }
    save_tensors(path, content, header, "mask file")


def read_own(
    path: str | os.PathLike[str],
    kind: str,
    versions: Sequence[str],
    writer: str,
    framework: Literal["numpy", "pt"] = "numpy",
) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and arrays of a safetensors file of a format of ours.

    Args:
        path: the file.
        kind: the format, "mask", "patch" or "delta".
        versions: of the format, those that can be read.
        writer: what writes such files, for messages.
        framework: of the arrays; numpy has no bfloat16.

    Raises:
        PeckerError: no such file, not readable, truncated, of another format or a later version.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise PeckerError(f"{kind} file {name!r} does not exist")
    try:
        with safe_open(name, framework=framework) as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != f"pecker_fast.{kind}":
                raise PeckerError(
                    f"{name!r} is a safetensors file but not a pecker_fast {kind}; expected one "
                    f"written by {writer}"
                )
            if metadata.get("version") not in versions:
                raise PeckerError(
                    f"{kind} file {name!r} has format version {shown(metadata.get('version'))}, "
                    f"this pecker_fast reads version {' and '.join(versions)}; update pecker_fast"
                )
            return metadata, {key: file.get_tensor(key) for key in file.keys()}
    except PeckerError:
        raise
    except OSError as error:
        raise PeckerError(f"{kind} file {name!r} cannot be read: {error}") from error
    except (SafetensorError, *UNEXPECTED) as error:
        raise unreadable(kind, name, error) from error


def unreadable(kind: str, name: str, error: Exception) -> PeckerError:
    """What is said where a file of ours is not what it should be."""
    return PeckerError(
        f"{kind} file {name!r} cannot be read, it is damaged or not a {kind}: {error}"
    )


def read_mask(path: str | os.PathLike[str]) -> MaskContent:
    """Read a mask file and check every part of it.

    Raises:
        PeckerError: no such file, truncated, not a mask, of a later version, or its content does
            not match its digest.
    """
    name = os.fspath(path)
    metadata, content = read_own(path, "mask", VERSIONS, "SaliencyMask.save")
    try:
        rows = parse_json(metadata["shapes"], f"mask file {name!r}")
        shapes = {key: stored_shape(key, shape) for key, shape in rows}
        granularity, block_size = metadata["granularity"], int(metadata["block_size"])
        digest = metadata["digest"]
        gaps = parse_json(metadata.get("gaps", "[]"), f"mask file {name!r}")
        bits = {
            key: bitmask(positions_of_gaps(value, shapes[key].numel()), shapes[key].numel())
            if key in gaps
            else value
            for key, value in content.items()
        }
    except PeckerError:
        raise
    except UNEXPECTED as error:
        raise unreadable("mask", name, error) from error
    expected = {
        key: ((shape.numel() + 7) // 8, np.dtype(np.uint8)) for key, shape in shapes.items()
    }
    found = {key: (value.size, value.dtype) for key, value in bits.items()}
    if found != expected or digest_of(shapes, bits) != digest:
        raise PeckerError(
            f"mask file {name!r} is damaged: its content does not match its digest; make it again"
        )
    try:
        check_granularity(granularity, block_size)
    except PeckerError as error:
        raise PeckerError(f"mask file {name!r}: {error}") from error
    indices = {key: _positions(bits[key], shape.numel()) for key, shape in shapes.items()}
    return MaskContent(indices, shapes, granularity, block_size, digest)


def _positions(bits: Bits, numel: int) -> Tensor:
    return torch.from_numpy(np.flatnonzero(unpacked(bits, numel)).astype(np.int32))


def stored_shape(name: object, shape: object) -> torch.Size:
    """A parameter's shape as a file has it.

    Raises:
        ValueError: it is no list of at most 64 whole numbers, or of more entries than int64 counts.
    """
    if isinstance(name, str) and isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS:
        whole = all(type(size) is int and size >= 0 for size in shape)
        if whole and math.prod(max(size, 1) for size in shape) < 1 << 63:
            return torch.Size(shape)
    raise ValueError(f"{shown(name)} has the shape {shown(shape)}")


def saved_by_torch(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one of `torch.save` does: as a zip archive or, long ago, a pickle.

    A missing or unreadable file does not; whoever reads it says what is wrong with it.
    """
    if not Path(path).is_file():  # a pipe would wait for a writer
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError:
        return False
    # As the length of a safetensors header, either would mean 9 MB and more.
    return start == b"PK\x03\x04" or start[:3] == b"\x80\x02\x8a"


def read_dense(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The dictionary of tensors in a SalUn mask file (`torch.save`), without running any pickle.

    Raises:
        PeckerError: no such file, not readable, or it holds anything but named tensors.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise PeckerError(f"mask file {name!r} does not exist")
    try:
        content = load_torch(Path(path))
    except (PeckerError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise PeckerError(
            f"mask file {name!r} cannot be read: it is damaged, or not a dictionary of tensors "
            "saved with torch.save"
        ) from error
    if not isinstance(content, Mapping):
        raise PeckerError(
            f"mask file {name!r} holds a {type(content).__name__}; expected a dictionary from "
            "parameter names to 0/1 tensors"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise PeckerError(
                f"mask file {name!r} holds {type(value).__name__} under {shown(key)}; expected a "
                "dictionary from parameter names to 0/1 tensors"
            )
        check_stored(key, value, f"mask file {name!r}")
    return dict(content)


def positions_from_dense(name: str, dense: Tensor) -> Tensor:
    """Sorted int32 positions of the ones of a bool, integer or floating-point 0/1 tensor.

    Raises:
        TypeError: not a tensor.
        PeckerError: a value other than 0 and 1.
    """
    if not isinstance(dense, Tensor):
        raise TypeError(f"the mask of {name!r} must be a tensor, got {type(dense).__name__}")
    check_numel(name, dense.shape)
    flat = dense.detach().cpu().reshape(-1)
    if flat.dtype != torch.bool:
        salient = flat == 1
        other = ~(salient | (flat == 0))
        if other.any():
            value = flat[other][0].item()
            raise PeckerError(
                f"the mask of {name!r} holds {value!r}; expected 0 (frozen) and 1 (salient) only. "
                "For scores use SaliencyMask.from_scores"
            )
        flat = salient
    return flat.nonzero().flatten().to(torch.int32)


def match_names(
    found: Iterable[str], wanted: Iterable[str], prefixes: Sequence[str]
) -> dict[str, str]:
    """Map names found in a file to a model's names, which may differ by prefixes on either side.

    Raises:
        PeckerError: a name that matches nothing, or two names that match the same parameter.
    """
    wanted = list(wanted)
    exact = set(wanted)
    bare: dict[str, str] = {}
    for name in wanted:
        stripped = strip_prefixes(name, prefixes)
        if stripped in bare:
            raise PeckerError(
                f"the model's parameters {bare[stripped]!r} and {name!r} differ by a prefix only; "
                f"pass prefixes=() to match names literally (prefixes are {few(prefixes)})"
            )
        bare[stripped] = name
    matched, unmatched = {}, []
    for name in found:
        target = name if name in exact else bare.get(strip_prefixes(name, prefixes))
        if target is None:
            unmatched.append(name)
        else:
            matched[name] = target
    if unmatched:
        raise PeckerError(
            f"{len(unmatched)} names of the mask are not in the model: {few(unmatched)}; the "
            f"model has {few(wanted)}. Is it a mask of another model?"
        )
    sources: dict[str, str] = {}
    for name, target in matched.items():
        if target in sources:
            raise PeckerError(
                f"the mask's {sources[target]!r} and {name!r} both match the model's {target!r}"
            )
        sources[target] = name
    return matched


def strip_prefixes(name: str, prefixes: Sequence[str]) -> str:
    """The name without any of the prefixes, which may be stacked (`module.model...`)."""
    prefix = next((p for p in prefixes if p and name.startswith(p)), None)
    return name if prefix is None else strip_prefixes(name[len(prefix) :], prefixes)
