"""Patches: an erased network as its base and one small file.

    save_patch("no_boots.safetensors", base, erased, mask, concept="ankle boot")
    apply_patch(network, "no_boots.safetensors")     # base -> erased, bit for bit, in place
    remove_patch(network, "no_boots.safetensors")    # erased -> base, bit for bit

A patch holds the bits of the base XOR those of the erased network at the salient entries
(`files`), so both ways are the same operation. What a network carries is never guessed: before
anything is written, the patches are taken off in thought, and what is left must have the digest of
the base in every tensor.

Patches of one base can be stacked. Where they have no entry in common, their order does not matter.
An entry that several have takes the value of the one applied last; that is no network anyone has
trained, so it has to be asked for (`overlap="last"`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import pecker_fast
from pecker_fast.errors import PeckerError
from pecker_fast.machine import usable_cores
from pecker_fast.masks.checks import Model, few
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.packing import Bits, bitmask
from pecker_fast.masks.stats import block_of
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
    "Overlap",
    "apply_patch",
    "network_digest",
    "overlap_of",
    "remove_patch",
    "require_base",
    "save_patch",
]

PathLike = str | os.PathLike[str]
T = TypeVar("T")

# Where a module keeps the files of the patches it carries, in the order they were applied.
_CARRIED = "_pecker_fast_patches"

_PART = 2**20  # entries that are compared at once


@dataclass(frozen=True)
class Overlap:
    """Salient entries that two patches have in common."""

    file: str  # of the patch that the network carried already
    entries: int  # how many are in both
    share: float  # of the entries of the patch that was to be applied
    # Block of the network -> entries in both; blocks without any are left out.
    blocks: Mapping[str, int]

    def __str__(self) -> str:
        largest = sorted(self.blocks.items(), key=lambda block: -block[1])[:3]
        where = ", ".join(f"{name} {entries:,}" for name, entries in largest)
        more = f" and {len(self.blocks) - 3} blocks more" if len(self.blocks) > 3 else ""
        return f"{self.entries:,} entries ({self.share:.1%}) are in {self.file!r} too" + (
            f": {where}{more}" if where else ""
        )


def save_patch(
    path: PathLike, base: Model, erased: Model, mask: SaliencyMask, **about: Any
) -> Patch:
    """Write what `erased` differs from `base` in as one file, whole or not at all.

    The file takes 1 bit for each entry of a parameter with salient entries, and one entry of the
    network for each salient one: 13 % of a float32 network at density 0.1, 16 % of a float16 one.

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
    check_alike(before, after)
    salient = positions_for(mask, before)

    def compare(name: str) -> tuple[TensorRecord, Bits | None, Any, int]:
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
            return record, None, None, changed
        values = old[positions] ^ new[positions]
        outside = changed - int(torch.count_nonzero(values))
        return record, bitmask(positions, old.numel()), values.numpy(), outside

    found = dict(zip(before, _in_threads(compare, before), strict=True))
    if moved := {name: outside for name, (_, _, _, outside) in found.items() if outside}:
        first = next(iter(moved))
        raise PeckerError(
            f"the erased network differs from its base outside the mask: {moved[first]:,} frozen "
            f"entries of {first!r}"
            + (f" and entries of {len(moved) - 1} more parameters" if len(moved) > 1 else "")
            + "; give the base it was made from and the mask it was trained under"
        )
    patch = Patch(
        path=os.fspath(path),
        tensors={name: record for name, (record, _, _, _) in found.items()},
        bits={name: bits for name, (_, bits, _, _) in found.items() if bits is not None},
        values={name: values for name, (_, _, values, _) in found.items() if values is not None},
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


def apply_patch(
    network: Model,
    file: PathLike,
    *,
    applied: Sequence[PathLike] | None = None,
    overlap: Literal["refuse", "last"] = "refuse",
) -> list[Overlap]:
    """Turn the base of a patch into its erased network, in place and bit for bit.

    Everything is checked before anything is written, and what was written is taken back if writing
    fails. A network in another dtype than the patch's is refused: rounded weights do not show what
    they were rounded from. Load it in the patch's dtype and convert it afterwards.

    Args:
        network: the base, any device and memory format; a mapping's tensors are written to.
        file: written by `save_patch`.
        applied: files of the patches that the network carries, in the order they were applied.
            None: those that were applied to this module in this process, or none if it has the bits
            of the base.
        overlap: what to do if the patch has entries in common with those the network carries:
            "refuse", or "last": they take this patch's values.

    Returns:
        For each patch the network carried, the entries that both have.

    Raises:
        PeckerError: the file is missing or damaged; the network is not the patch's base with the
            applied patches (the first tensor that differs is named), or carries this patch already;
            the patches overlap.
    """
    if overlap not in ("refuse", "last"):
        raise PeckerError(f"overlap must be 'refuse' or 'last', got {overlap!r}")
    patch = read_patch(file)
    tensors = tensors_for(network, patch)
    stack = _stack_on(network, tensors, patch, applied)
    if any(other.digest == patch.digest for other in stack):
        raise PeckerError(f"the network carries the patch {patch.path!r} already")
    overlaps = [overlap_of(patch, other) for other in stack]
    common = [found for found in overlaps if found.entries]
    if common and overlap == "refuse":
        raise PeckerError(
            f"patch {patch.path!r} overlaps with what the network carries: "
            f"{'; '.join(map(str, common))}. With overlap='last' they take this patch's values"
        )
    _switch(network, tensors, stack, [*stack, patch])
    return overlaps


def remove_patch(
    network: Model, file: PathLike, *, applied: Sequence[PathLike] | None = None
) -> None:
    """Take a patch off a network again, in place and bit for bit.

    Without others the base is restored, also in another process than the one that applied it. Of a
    stack the others stay, and entries that were this patch's take the value of the last of them.

    Args:
        network: the erased network.
        file: of the patch to take off.
        applied: as in `apply_patch`, `file` included.

    Raises:
        PeckerError: the file is missing or damaged, or the network does not carry the patch.
    """
    patch = read_patch(file)
    tensors = tensors_for(network, patch)
    stack = _stack_on(network, tensors, patch, applied)
    left = [other for other in stack if other.digest != patch.digest]
    if len(left) == len(stack):
        raise PeckerError(f"the network does not carry the patch {patch.path!r}")
    _switch(network, tensors, stack, left)


def overlap_of(patch: Patch, other: Patch) -> Overlap:
    """The salient entries of `patch` that `other` has too.

    Raises:
        PeckerError: they are patches of different bases.
    """
    _check_same_base(patch, other)
    blocks: dict[str, int] = {}
    for name, bits in patch.bits.items():
        if name in other.bits:
            both = int(np.unpackbits(bits & other.bits[name]).sum(dtype=np.int64))
            if both:
                blocks[block_of(name)] = blocks.get(block_of(name), 0) + both
    entries = sum(blocks.values())
    return Overlap(other.path, entries, entries / patch.nnz, blocks)


# ---- What a network carries


def require_base(patch: Patch, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of the patch's base.

    Raises:
        PeckerError: the first that differs is named.
    """
    _stack_on({}, tensors, patch, ())


def _stack_on(
    network: Model,
    tensors: Mapping[str, Tensor],
    patch: Patch,
    applied: Sequence[PathLike] | None,
) -> list[Patch]:
    """The patches on a network, in order; proved by the digests of what is left without them."""
    base = {name: record.base for name, record in patch.tensors.items()}
    stack: list[Patch] = []
    if applied is not None:
        stack = _read_stack(applied, patch)
        found = _digests(tensors, stack)
    else:
        found = _digests(tensors, stack)
        if found == {name: record.result for name, record in patch.tensors.items()}:
            return [patch]
        carried: tuple[str, ...] = getattr(network, _CARRIED, ())
        # Weights that were loaded since then carry nothing.
        if found != base and carried:
            stack = _read_stack(carried, patch)
            found = _digests(tensors, stack)
    if differing := [name for name in base if found[name] != base[name]]:
        without = f" without {few(other.path for other in stack)}" if stack else ""
        raise PeckerError(
            f"patch {patch.path!r} was made for a base with digest {patch.base[:12]}: "
            f"{len(differing)} of {len(base)} tensors of this network{without} differ from it, "
            f"first {differing[0]!r}. Load that base, or name the patches that the network carries "
            "in applied="
        )
    return stack


def _read_stack(files: Iterable[PathLike], patch: Patch) -> list[Patch]:
    stack = [read_patch(file) for file in files]
    for other in stack:
        _check_same_base(patch, other)
    return stack


def _check_same_base(patch: Patch, other: Patch) -> None:
    if patch.base != other.base:
        raise PeckerError(
            f"patches {other.path!r} and {patch.path!r} are of different bases ({other.base[:12]} "
            f"and {patch.base[:12]}); only patches of one base can be stacked"
        )


def _digests(tensors: Mapping[str, Tensor], stack: Sequence[Patch]) -> dict[str, str]:
    """Name -> digest of the tensor without the patches of a stack."""

    def digest(name: str) -> str:
        bits, delta = flat_bits(name, tensors[name]), _delta(name, stack)
        return digest_of_bits(bits if delta is None else bits ^ delta)

    return dict(zip(tensors, _in_threads(digest, tensors), strict=True))


def _delta(name: str, stack: Sequence[Patch]) -> Tensor | None:
    """(numel,) integers: the base's bits XOR those under the stack; None where it has no entry."""
    layers = [patch for patch in stack if name in patch.values]
    if not layers:
        return None
    delta = np.zeros(layers[0].tensors[name].shape.numel(), layers[0].values[name].dtype)
    for patch in layers:
        delta[patch.salient(name)] = patch.values[name]
    return torch.from_numpy(delta)


def _switch(
    network: Model, tensors: Mapping[str, Tensor], before: list[Patch], after: list[Patch]
) -> None:
    """Take one stack off and put another on; if that fails, the network is as it was."""
    names = [name for name in tensors if any(name in p.values for p in (*before, *after))]
    versions = {name: tensors[name]._version for name in names}
    try:
        for name in names:
            _exchange(name, tensors[name], before, after)
    except BaseException:
        for name in names:
            # The counter tells also when the interrupt came right after the write.
            if tensors[name]._version != versions[name]:
                _exchange(name, tensors[name], before, after)
        raise
    if isinstance(network, nn.Module):
        setattr(network, _CARRIED, tuple(os.path.abspath(patch.path) for patch in after))


def _exchange(name: str, tensor: Tensor, before: list[Patch], after: list[Patch]) -> None:
    """XOR a tensor with the difference of two stacks; doing it again undoes it."""
    deltas = [delta for delta in (_delta(name, before), _delta(name, after)) if delta is not None]
    delta = deltas[0] if len(deltas) == 1 else deltas[0] ^ deltas[1]
    # A view of the same width works with any strides; detach() keeps the version counter.
    bits = tensor.detach().view(integer_dtype(name, tensor))
    bits.bitwise_xor_(delta.view(tensor.shape).to(tensor.device))


def _in_threads(function: Callable[[str], T], names: Iterable[str]) -> list[T]:
    # Nearly all of the time goes to SHA-256, which runs without the interpreter's lock.
    with ThreadPoolExecutor(min(usable_cores(), 8)) as pool:
        return list(pool.map(function, names))
