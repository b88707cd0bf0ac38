"""Patches: an erased network as its base and one small file.

    save_patch("no_boots.safetensors", base, erased, mask, concept="ankle boot")
    apply_patch(network, "no_boots.safetensors")     # base -> erased, bit for bit, in place
    remove_patch(network, "no_boots.safetensors")    # erased -> base, bit for bit

A patch holds the bits of the base XOR those of the erased network at the salient entries
(`files`), so both ways are the same operation. Before anything is written, every tensor of the
network must have the digest that the patch expects.

Patches of one base that have no entry in common can be on a network together, in any order; the
others are named as `applied`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import pecker_fast
from pecker_fast.errors import PeckerError
from pecker_fast.machine import usable_cores
from pecker_fast.masks.checks import Model, few
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.patches.checks import (
    check_alike,
    dtype_name,
    positions_for,
    tensors_for,
    tensors_of,
)
from pecker_fast.patches.files import (
    Patch,
    TensorRecord,
    digest_of_bits,
    digest_of_records,
    flat_bits,
    integer_dtype,
    read_patch,
    write_patch,
)

__all__ = [
    "apply_patch",
    "common_entries",
    "network_digest",
    "remove_patch",
    "require_state",
    "save_patch",
]

PathLike = str | os.PathLike[str]
T = TypeVar("T")

_PART = 2**20  # entries that are compared at once


def save_patch(
    path: PathLike, base: Model, erased: Model, mask: SaliencyMask, **about: Any
) -> Patch:
    """Write what `erased` differs from `base` in as one file, whole or not at all.

    The file takes at most 1 bit for each entry of a parameter with salient entries, and one entry
    of the network for each salient one: 13 % of a float32 network at density 0.1.

    Args:
        path: the file, `.safetensors`.
        base: the network before erasing, any device and memory format. Parameters and persistent
            buffers of a module, or a mapping of names to tensors.
        erased: the network after it; the same names, shapes and dtypes.
        mask: which entries may differ. Its names may carry a prefix (`mask.PREFIXES`).
        **about: what else to record: text, numbers, lists and dictionaries of them.

    Returns:
        What `read_patch` would find in the file.

    Raises:
        PeckerError: the two differ outside the mask, in any bit (the parameter is named), or
            nowhere; names, shapes or dtypes differ; the mask is of another network; the file cannot
            be written.
    """
    before, after = tensors_of(base, "base"), tensors_of(erased, "erased network")
    check_alike(before, after, "erased network", "give the base that it was made from")
    salient = positions_for(mask, before)

    def compare(name: str) -> tuple[TensorRecord, npt.NDArray[Any] | None, int]:
        old, new = flat_bits(name, before[name]), flat_bits(name, after[name])
        # In parts: a copy of every tensor that a thread works on would be half a large network.
        parts = zip(torch.split(old, _PART), torch.split(new, _PART), strict=True)
        changed = sum(int(torch.count_nonzero(ours != theirs)) for ours, theirs in parts)
        digest = digest_of_bits(old)
        result = digest_of_bits(new) if changed else digest
        tensor = before[name]
        record = TensorRecord(tensor.shape, dtype_name(tensor), digest, result)
        positions = salient.get(name)
        if positions is None or not positions.numel():
            return record, None, changed
        values = old[positions] ^ new[positions]
        return record, values.numpy(), changed - int(torch.count_nonzero(values))

    found = dict(zip(before, _in_threads(compare, before), strict=True))
    if moved := {name: outside for name, (_, _, outside) in found.items() if outside}:
        raise PeckerError(
            "the erased network differs from its base outside the mask, in "
            f"{sum(moved.values()):,} frozen entries of {few(moved)}; give the base it was made "
            "from and the mask it was trained under"
        )
    values = {name: xor for name, (_, xor, _) in found.items() if xor is not None}
    patch = Patch(
        path=os.fspath(path),
        tensors={name: record for name, (record, _, _) in found.items()},
        positions={name: salient[name] for name in values},
        values=values,
        about=about,
        package=pecker_fast.__version__,
        mask=SaliencyMask(salient, {name: before[name].shape for name in salient}).digest,
    )
    if patch.base == patch.result:
        raise PeckerError(
            "the erased network has the bits of its base, so there is nothing to save; was the "
            "base copied before it was trained?"
        )
    return write_patch(path, patch)


def network_digest(network: Model) -> str:
    """SHA-256 (hex) of every bit of a network, and of names, shapes and dtypes.

    It is the `base` of every patch of this network, and the `result` of one that makes it. Names
    are without prefixes, and their order does not count.

    Args:
        network: parameters and persistent buffers of a module, or a mapping of names to tensors;
            any device and memory format.

    Raises:
        PeckerError: two names that differ by a prefix only, tensors without values, or entries that
            are not 1, 2, 4 or 8 bytes wide.
    """
    tensors = tensors_of(network, "network")

    def record(name: str) -> TensorRecord:
        found = digest_of_bits(flat_bits(name, tensors[name]))
        return TensorRecord(tensors[name].shape, dtype_name(tensors[name]), found, found)

    return digest_of_records(dict(zip(tensors, _in_threads(record, tensors), strict=True)), "base")


def apply_patch(network: Model, file: PathLike, *, applied: Sequence[PathLike] = ()) -> None:
    """Turn the base of a patch into its erased network, in place and bit for bit.

    Everything is checked before anything is written, and what was written is taken back if writing
    fails. A network in another dtype than the patch's is refused: rounded weights do not show what
    they were rounded from. Load it in the patch's dtype and convert it afterwards.

    Args:
        network: the base, any device and memory format; a mapping's tensors are written to.
        file: written by `save_patch`.
        applied: files of other patches that the network carries.

    Raises:
        PeckerError: the file is missing or damaged; the network is not the patch's base with the
            applied patches (the first tensor that differs is named), or carries this patch already;
            patches have entries in common.
    """
    _exchange(network, file, applied, "base")


def remove_patch(network: Model, file: PathLike, *, applied: Sequence[PathLike] = ()) -> None:
    """Take a patch off a network again, in place and bit for bit; arguments as of `apply_patch`.

    Raises:
        PeckerError: the file is missing or damaged, or the network does not carry the patch.
    """
    _exchange(network, file, applied, "result")


def common_entries(patch: Patch, other: Patch) -> int:
    """How many salient entries two patches have in common.

    Raises:
        PeckerError: they are patches of different bases.
    """
    if patch.base != other.base:
        raise PeckerError(
            f"patches {other.path!r} and {patch.path!r} are of different bases ({other.base[:12]} "
            f"and {patch.base[:12]}); only patches of one base can be applied together"
        )
    return sum(
        np.intersect1d(positions, other.positions[name], assume_unique=True).size
        for name, positions in patch.positions.items()
        if name in other.positions
    )


def require_state(
    patch: Patch,
    tensors: Mapping[str, Tensor],
    state: Literal["base", "result"],
    others: Sequence[Patch] = (),
) -> None:
    """Refuse tensors that are not those of the patch's base, or of its result.

    Args:
        patch: what the tensors are compared with.
        tensors: by the patch's names.
        state: which of the two they must be.
        others: patches that are on them besides, looked at as if they were removed.

    Raises:
        PeckerError: the first tensor that differs is named.
    """

    def digest(name: str) -> str:
        bits = flat_bits(name, tensors[name])
        for other in others:
            if name in other.values:
                bits = bits ^ _difference(other, name)
        return digest_of_bits(bits)

    found = dict(zip(tensors, _in_threads(digest, tensors), strict=True))
    records = patch.tensors
    differing = {
        which: [name for name in records if found[name] != getattr(records[name], which)]
        for which in ("base", "result")
    }
    if not differing[state]:
        return
    if state == "base" and not differing["result"]:
        raise PeckerError(f"the network carries the patch {patch.path!r} already")
    if state == "result" and not differing["base"]:
        raise PeckerError(f"the network does not carry the patch {patch.path!r}")
    raise PeckerError(
        f"patch {patch.path!r} was made for a base with digest {patch.base[:12]}: "
        f"{len(differing[state])} of {len(records)} tensors of this network differ from its "
        f"{state}, first {differing[state][0]!r}. Load that network, or name the other patches "
        "that it carries in applied="
    )


def _exchange(
    network: Model, file: PathLike, applied: Sequence[PathLike], state: Literal["base", "result"]
) -> None:
    """XOR a network that is in one state of a patch into the other, or leave it as it was."""
    patch = read_patch(file)
    tensors = tensors_for(network, patch)
    others = [other for other in map(read_patch, applied) if other.digest != patch.digest]
    for other in others:
        if common := common_entries(patch, other):
            raise PeckerError(
                f"patches {patch.path!r} and {other.path!r} have {common:,} entries in common, so "
                "they cannot be on one network; remove the other first"
            )
    require_state(patch, tensors, state, others)
    versions = {name: tensors[name]._version for name in patch.values}
    try:
        for name in patch.values:
            _flip(patch, name, tensors[name])
    except BaseException:
        for name in patch.values:
            # The counter tells also when the interrupt came right after the write.
            if tensors[name]._version != versions[name]:
                _flip(patch, name, tensors[name])
        raise


def _flip(patch: Patch, name: str, tensor: Tensor) -> None:
    """XOR a tensor with the difference of base and result; doing it again undoes it."""
    # A view of the same width works with any strides; detach() keeps the version counter.
    bits = tensor.detach().view(integer_dtype(name, tensor))
    bits.bitwise_xor_(_difference(patch, name).view(tensor.shape).to(tensor.device))


def _difference(patch: Patch, name: str) -> Tensor:
    """(numel,) integers: the base's bits XOR the result's."""
    values = torch.from_numpy(patch.values[name])
    difference = torch.zeros(patch.tensors[name].shape.numel(), dtype=values.dtype)
    difference[patch.positions[name]] = values
    return difference


def _in_threads(function: Callable[[str], T], names: Iterable[str]) -> list[T]:
    # Nearly all of the time goes to SHA-256, which runs without the interpreter's lock.
    with ThreadPoolExecutor(min(usable_cores(), 8)) as pool:
        return list(pool.map(function, names))
