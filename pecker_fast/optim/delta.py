"""What an optimizer step can have changed, to be sent to another copy of the model.

    delta = optimizer.delta()           # the masked values: 2 bytes an entry of a bfloat16 model
    apply_delta(copy, delta, mask)      # in place, on any device; the copy then has the same bits

The mask says which entries those are, so their positions travel once, as the mask, and nothing is
compared with a snapshot of the weights. Values are what the parameters hold, not differences: a
copy that missed a delta is right again after the next. A NaN stays a NaN, of any other value every
bit arrives.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast import backends
from pecker_fast.backends.layout import positions_on
from pecker_fast.errors import PeckerError, PeckerTypeError
from pecker_fast.files import few
from pecker_fast.masks.checks import Model, parameters_of
from pecker_fast.masks.files import UNEXPECTED, read_own, unreadable
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.optim.resolve import mask_digest
from pecker_fast.optim.sharded import Share, is_sharded, local_tensor, row_share
from pecker_fast.torch_files import save_tensors

__all__ = ["Delta", "apply_delta", "delta_of", "names_of"]

FORMAT = "pecker_fast.delta"
VERSIONS = ("1",)


@dataclass(frozen=True, eq=False)
class Delta:
    """The masked values of a model's parameters.

    Attributes:
        values: name -> (nnz,) values at the salient positions, sorted as the mask has them, in the
            parameter's dtype; frozen parameters are left out. Without a mask: all of each
            parameter, in its shape. Those of one dtype lie one after the other in one storage.
        mask: digest of the salient positions; None without a mask.
    """

    values: Mapping[str, Tensor]
    mask: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(value.nbytes for value in self.values.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the values as a safetensors file, whole or not at all.

        Raises:
            PeckerError: the file cannot be written.
        """
        content = {name: value.cpu().contiguous() for name, value in self.values.items()}
        metadata = {"format": FORMAT, "version": VERSIONS[-1]}
        metadata |= {} if self.mask is None else {"mask": self.mask}
        metadata["digest"] = _digest_of_file(content, self.mask)
        save_tensors(path, content, metadata, "delta file")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Delta:
        """Read what `save` wrote.

        Raises:
            PeckerError: no such file, truncated, not a delta, of a later version, or its content
                does not match its digest.
        """
        name = os.fspath(path)
        metadata, content = read_own(path, "delta", VERSIONS, "Delta.save", framework="pt")
        try:
            intact = _digest_of_file(content, metadata.get("mask")) == metadata["digest"]
        except UNEXPECTED as error:
            raise unreadable("delta", name, error) from error
        if not intact:
            raise PeckerError(
                f"delta file {name!r} is damaged: its content does not match its digest; copy it "
                "again"
            )
        return cls(content, metadata.get("mask"))


def apply_delta(
    model: Model, delta: Delta, mask: SaliencyMask | None = None, backend: str = "auto"
) -> None:
    """Write the values of a delta into a copy of the model, in place.

    Everything is checked before anything is written. On a GPU nothing waits for the device: the
    mask is hashed and its positions are copied there at its first use only.

    Args:
        model: the copy, or a mapping of names to its tensors; any device and memory format.
        delta: from `MaskedAdamW.delta`, on any device.
        mask: of the optimizer that made it; None if that has none.
        backend: "auto" or a name of `pecker_fast.backends.available()`.

    Raises:
        PeckerError: the delta is of another mask, or the model lacks a parameter of it, or has it
            in another shape or dtype, sharded, or without values.
        PeckerTypeError: not a Delta, or a mask of another class.
    """
    if not isinstance(delta, Delta):
        raise PeckerTypeError(f"delta must be a Delta, got {type(delta).__name__}")
    if mask is not None and not isinstance(mask, SaliencyMask):
        raise PeckerTypeError(
            f"mask must be a SaliencyMask, got {type(mask).__name__}; SaliencyMask.from_dense "
            "makes one of bool tensors"
        )
    expected = None if mask is None else _digest_of_mask(mask)
    if delta.mask != expected:
        raise PeckerError(
            f"the delta is of mask {_short(delta.mask)}, the mask given is {_short(expected)}: "
            "give the mask of the optimizer that made it"
        )
    parameters = parameters_of(model)
    if missing := [name for name in delta.values if name not in parameters]:
        raise PeckerError(
            f"the model has no {few(missing)}, which the delta holds; it has {few(parameters)}: "
            "give the model that the optimizer's names are of, not a wrapper of it"
        )
    held = parameters if mask is None else {n for n, where in mask.indices.items() if len(where)}
    if odd := [*(delta.values.keys() - held), *(held - delta.values.keys() if mask else ())]:
        raise PeckerError(f"the delta and the mask differ in the presence of {few(sorted(odd))}")
    for name, value in delta.values.items():
        _check(name, parameters[name], value, mask)
    salient: dict[torch.device, list[tuple[Tensor, Tensor, Tensor]]] = {}
    with torch.no_grad():
        for name, value in delta.values.items():
            param = parameters[name]
            value = value.to(param.device, non_blocking=True)
            if mask is None:
                param.copy_(value)
            else:
                positions = positions_on(mask.indices[name], param.device)
                row = (param, positions, value.to(_compact_dtype(value.dtype)))
                salient.setdefault(param.device, []).append(row)
        for device, rows in salient.items():
            params, indices, values = zip(*rows, strict=True)
            backends.select(backend, device).scatter_salient_(params, indices, values)


def names_of(groups: list[dict[str, Any]], model: nn.Module | None) -> dict[str, Tensor]:
    """Name -> parameter of an optimizer's groups.

    Args:
        groups: parameter groups.
        model: whose names the parameters have, where the optimizer was given none.

    Raises:
        PeckerError: parameters without names, or a model that lacks one.
    """
    if model is not None:
        names = {param: name for name, param in model.named_parameters()}
    else:
        names = {}
        for group in groups:
            names.update(zip(group["params"], group.get("param_names", ()), strict=False))
    params = [param for group in groups for param in group["params"]]
    if unnamed := sum(param not in names for param in params):
        raise PeckerError(
            f"{unnamed} of the optimizer's parameters have no names"
            + (" in this model: give the one it trains" if model else ": use delta(model)")
        )
    return {names[param]: param for param in params}


def delta_of(
    named: Mapping[str, Tensor],
    indices: Mapping[Tensor, Tensor],
    shares: Mapping[Tensor, Share],
    backend: str,
    digests: dict[tuple[str, ...], str],
) -> Delta:
    """The delta of an optimizer. Collective where parameters are sharded.

    Args:
        named: name -> parameter.
        indices: parameter -> (nnz,) int32 positions in its local tensor; empty without a mask.
        shares: sharded parameter -> which slots of the whole those are.
        backend: "auto" or the name of one.
        digests: names -> `Delta.mask`; filled here, to be kept as long as the mask.
    """
    digest = None
    if indices:
        if tuple(named) not in digests:
            digests[tuple(named)] = _digest_of(
                (name, param.shape, _whole(param, indices[param], shares.get(param)))
                for name, param in named.items()
            )
        digest = digests[tuple(named)]
        named = {n: p for n, p in named.items() if _is_salient(p, indices, shares)}
    batches: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, param in named.items():
        batches.setdefault((param.device, param.dtype), []).append(name)
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for (device, dtype), names in batches.items():
            params = [local_tensor(named[name]) for name in names]
            if indices:
                where = [indices[named[name]] for name in names]
                sizes = [positions.numel() for positions in where]
                flat = torch.empty(sum(sizes), dtype=_compact_dtype(dtype), device=device)
                backends.select(backend, device).gather_salient_(
                    params, where, torch.split(flat, sizes)
                )
                values.update(zip(names, torch.split(flat.to(dtype), sizes), strict=True))
            else:
                flat = torch.cat([param.reshape(-1) for param in params])
                parts = torch.split(flat, [param.numel() for param in params])
                shaped = [part.view(p.shape) for part, p in zip(parts, params, strict=True)]
                values.update(zip(names, shaped, strict=True))
    for name, param in named.items():
        if is_sharded(param):
            share = shares[param] if indices else row_share(param)
            values[name] = share.gather(values[name], param)
    return Delta({name: values[name] for name in named}, digest)


@functools.lru_cache(maxsize=8)
def _digest_of_mask(mask: SaliencyMask) -> str:
    return _digest_of((name, mask.shapes[name], where) for name, where in mask.indices.items())


def _digest_of(salient: Iterable[tuple[str, torch.Size, Tensor]]) -> str:
    """SHA-256 (hex) of names, shapes and positions, in any order; frozen parameters do not count.

    Not the mask's own digest: an optimizer keeps positions only, and may lack frozen parameters.
    """
    rows = sorted((row for row in salient if row[2].numel()), key=lambda row: row[0])
    names = json.dumps([name for name, _, _ in rows])
    positions = mask_digest([(shape, where) for _, shape, where in rows])
    return hashlib.sha256(f"{names}{positions}".encode()).hexdigest()


def _whole(param: Tensor, indices: Tensor, share: Share | None) -> Tensor:
    """(nnz,) positions in the whole of a parameter, of those in its local tensor."""
    if share is None:
        return indices
    rows = row_share(param)
    start = rows.bounds[rows.holder] * param.shape[1:].numel()
    return share.gather(indices + start, param)


def _is_salient(
    param: Tensor, indices: Mapping[Tensor, Tensor], shares: Mapping[Tensor, Share]
) -> bool:
    share = shares.get(param)
    return bool(indices[param].numel() if share is None else share.bounds[-1])


def _check(name: str, param: Tensor, value: Tensor, mask: SaliencyMask | None) -> None:
    """Refuse a parameter that a delta's value does not fit."""
    if is_sharded(param) or param.is_meta:
        found = "sharded" if is_sharded(param) else "on the meta device"
        raise PeckerError(
            f"{name!r} of the model is {found}: apply the delta to a whole copy that has values"
        )
    if mask is not None and param.shape != mask.shapes[name]:
        raise PeckerError(
            f"{name!r} has shape {tuple(param.shape)}, in the mask {tuple(mask.shapes[name])}: the "
            "delta is of another model"
        )
    shape = param.shape if mask is None else mask.indices[name].shape
    if value.shape != shape or value.dtype != param.dtype:
        raise PeckerError(
            f"the delta has {tuple(value.shape)} {value.dtype} for {name!r}, expected "
            f"{tuple(shape)} {param.dtype}: the copy must have the shapes and dtypes of the "
            "optimizer's parameters"
        )


def _compact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What backends take for values of a dtype; each of them is exact there."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def _digest_of_file(content: Mapping[str, Any], mask: str | None) -> str:
    rows = [[n, str(content[n].dtype), list(content[n].shape)] for n in sorted(content)]
    digest = hashlib.sha256(json.dumps([mask, rows]).encode())
    for name in sorted(content):
        digest.update(content[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
