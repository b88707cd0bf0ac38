"""What other programs' files say of an erased network, checked against its base.

A reader returns name -> (erased tensor, salient positions): the tensor whole, on the CPU, with the
base's shape and dtype; positions (nnz,) int32, sorted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, parse_json, read_json, shown
from pecker_fast.masks.files import UNEXPECTED
from pecker_fast.patches.adapters import ADAPTER_FILES, ROOT
from pecker_fast.patches.files import flat_bits

__all__ = ["SPARSE_FORMAT", "Changed", "read_shira", "read_sparse", "read_state_dict"]

SPARSE_FORMAT = "pecker_fast.sparse"
Changed: TypeAlias = dict[str, tuple[Tensor, Tensor]]


def read_state_dict(file: Path, base: Mapping[str, Tensor]) -> Changed:
    """Whole tensors; salient is what differs from the base in any bit.

    Raises:
        PeckerError: not a safetensors file, or tensors that the base has not, or otherwise.
    """
    _, content = _tensors(file)
    return {name: _whole(file, name, tensor, base) for name, tensor in content.items()}


def read_sparse(file: Path, base: Mapping[str, Tensor]) -> Changed:
    """`indices.NAME` and `values.NAME`, as an export to vllm-sparse has them.

    Raises:
        PeckerError: not such a file, or it does not fit the base.
    """
    metadata, content = _tensors(file)
    if metadata.get("format") != SPARSE_FORMAT or metadata.get("version") != "1":
        raise PeckerError(
            f"{file}: expected format {SPARSE_FORMAT} of version 1, found "
            f"{shown(metadata.get('format'))} of {shown(metadata.get('version'))}; give what "
            "`pecker-fast patch export --to vllm-sparse` wrote"
        )
    shapes = parse_json(metadata.get("shapes", ""), str(file))
    names = {key.partition(".")[2] for key in content}
    if odd := content.keys() ^ {f"{part}.{n}" for part in ("indices", "values") for n in names}:
        raise PeckerError(f"{file}: expected indices and values of each tensor, not so {few(odd)}")
    changed: Changed = {}
    for name in sorted(names):
        where, values = content[f"indices.{name}"], content[f"values.{name}"]
        old = _tensor_of(base, file, name)
        if not isinstance(shapes, dict) or shapes.get(name) != list(old.shape):
            raise PeckerError(
                f"{file}: {name!r} is not of shape {tuple(old.shape)}, as in the base"
            )
        if where.dtype != torch.int32 or where.dim() != 1 or where.shape != values.shape:
            raise PeckerError(
                f"{file}: {name!r} needs as many int32 indices as values, got {where.dtype} "
                f"{tuple(where.shape)} and {tuple(values.shape)}"
            )
        _check_positions(file, name, where, old.numel())
        if values.dtype != old.dtype:
            raise PeckerError(f"{file}: {name!r} is {values.dtype}, in the base {old.dtype}")
        changed[name] = (_written(old, where.long(), values), where)
    return changed


def read_shira(folder: Path, base: Mapping[str, Tensor]) -> Changed:
    """An adapter as PEFT saves it: the base plus its values, rounded to the base's dtype.

    Raises:
        PeckerError: not such a folder, or it does not fit the base.
    """
    config = read_json(folder / ADAPTER_FILES[0])
    kind = config.get("peft_type") if isinstance(config, dict) else config
    if kind != "SHIRA":
        raise PeckerError(
            f"{folder / ADAPTER_FILES[0]}: expected an adapter with peft_type SHIRA, found "
            f"{shown(kind)}; a dense difference has no positions"
        )
    file = folder / ADAPTER_FILES[1]
    _, content = _tensors(file)
    changed: Changed = {}
    for key in content:
        if not key.startswith(ROOT):
            raise PeckerError(f"{file}: {shown(key)} does not start with {ROOT}, as PEFT's do")
        layer, _, part = key.removeprefix(ROOT).rpartition(".")
        if part == "shira_weight":
            name = f"{layer}.weight"
            changed[name] = _shira_layer(
                file, name, content[key], content.get(f"{ROOT}{layer}.shira_indices"), base
            )
        elif part != "shira_indices":
            name = key.removeprefix(ROOT)
            changed[name] = _whole(file, name, content[key], base)
        elif f"{ROOT}{layer}.shira_weight" not in content:
            raise PeckerError(f"{file}: {layer!r} has positions and no values")
    return changed


def _shira_layer(
    file: Path, name: str, delta: Tensor, where: Tensor | None, base: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    old = _tensor_of(base, file, name)
    wanted = (2, *delta.shape)
    if where is None or tuple(where.shape) != wanted or where.dtype != torch.int32:
        found = "none" if where is None else f"{where.dtype} {tuple(where.shape)}"
        raise PeckerError(f"{file}: {name!r} needs int32 shira_indices of {wanted}, got {found}")
    if old.dim() != 2 or delta.dim() != 1 or not delta.is_floating_point():
        raise PeckerError(
            f"{file}: {name!r} has {delta.dtype} values {tuple(delta.shape)} for a weight "
            f"{tuple(old.shape)}; expected a list for a matrix"
        )
    rows, columns = where.long()
    if len(delta) and not (
        0 <= int(rows.min()) <= int(rows.max()) < old.shape[0]
        and 0 <= int(columns.min()) <= int(columns.max()) < old.shape[1]
    ):
        raise PeckerError(f"{file}: {name!r} has positions outside of {tuple(old.shape)}")
    # Positions that come again are added up, as PEFT does: an export fills layers up with them.
    flat, slots = torch.unique(rows * old.shape[1] + columns, return_inverse=True)
    wide = torch.float64 if old.dtype == torch.float64 else torch.float32
    total = torch.zeros(len(flat), dtype=wide).index_add_(0, slots, delta.to(wide))
    values = (old.detach().cpu().flatten()[flat].to(wide) + total).to(old.dtype)
    return _written(old, flat, values), flat.int()


def _written(old: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """A copy of the base's tensor with other values."""
    new = old.detach().cpu().flatten().clone()
    new[where] = values
    return new.view(old.shape)


def _whole(
    file: Path, name: str, tensor: Tensor, base: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    old = _tensor_of(base, file, name)
    if tensor.shape != old.shape or tensor.dtype != old.dtype:
        raise PeckerError(
            f"{file}: {name!r} is {tuple(tensor.shape)} {tensor.dtype}, in the base "
            f"{tuple(old.shape)} {old.dtype}; they must agree"
        )
    differs = flat_bits(name, tensor) != flat_bits(name, old)
    return tensor, differs.nonzero().flatten().int()


def _tensor_of(base: Mapping[str, Tensor], file: Path, name: str) -> Tensor:
    if name not in base:
        raise PeckerError(f"{file}: the base has no {shown(name)}, it has {few(base)}")
    return base[name]


def _check_positions(file: Path, name: str, where: Tensor, numel: int) -> None:
    positions = where.numpy()
    if len(positions) and (
        positions[0] < 0 or positions[-1] >= numel or not np.all(positions[1:] > positions[:-1])
    ):
        raise PeckerError(
            f"{file}: the indices of {name!r} must increase and be below {numel}, got "
            f"{positions[0]} to {positions[-1]}"
        )


def _tensors(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise PeckerError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            content = {key: opened.get_tensor(key) for key in opened.keys()}
            return dict(opened.metadata() or {}), content
    except (OSError, SafetensorError, *UNEXPECTED) as error:
        raise PeckerError(
            f"{file}: is no safetensors file, or damaged ({error}); export it again"
        ) from error
