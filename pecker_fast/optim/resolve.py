"""From the mask a user hands MaskedAdamW to sorted positions per parameter, strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch
from torch import Tensor

from pecker_fast.backends.layout import positions_on
from pecker_fast.backends.work import PARAM_DTYPES
from pecker_fast.errors import PeckerError, PeckerTypeError
from pecker_fast.optim.sharded import (
    Share,
    is_sharded,
    refuse_different_masks,
    split_positions,
)

if TYPE_CHECKING:
    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.masks.structured import BoundMask

__all__ = ["MaskLike", "ResolvedMask", "mask_digest", "param_label", "resolve_mask"]

MaskLike: TypeAlias = Union[
    "SaliencyMask", "BoundMask", Mapping[str, Tensor], Mapping[Tensor, Tensor]
]
_INT32_MAX = 2**31 - 1


@dataclass
class ResolvedMask:
    """A mask for the parameters of some groups.

    Attributes:
        indices: parameter -> (nnz,) int32 sorted positions on its device. Of a sharded parameter:
            those in its local tensor.
        shares: sharded parameter -> which slots of the whole compact state those are.
        digests: of each group's whole mask.
    """

    indices: dict[Tensor, Tensor] = field(default_factory=dict)
    shares: dict[Tensor, Share] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)


def param_label(group: dict[str, Any], group_index: int, index: int) -> str:
    """How messages call a parameter: by its name where it has one."""
    names = group.get("param_names")
    return names[index] if names else f"param_groups[{group_index}]['params'][{index}]"


def resolve_mask(
    mask: MaskLike, groups: list[dict[str, Any]], first_group: int = 0
) -> ResolvedMask:
    """Match a mask with the parameters of some groups; both must fit exactly.

    Collective where parameters are sharded: their processes must have the same mask.

    Args:
        mask: a SaliencyMask, what its `bound` returns, or a mapping from name or parameter to a
            bool tensor.
        groups: parameter groups of an optimizer; names are taken from "param_names".
        first_group: the number of the first group, for messages.

    Raises:
        PeckerError: a parameter the mask does not know, a salient name no parameter has, a shape
            that differs, a mask with no salient entry, parameters without names, or masks that
            differ between processes.
        PeckerTypeError: not a mask.
    """
    by_name, positions_of = _lookup(mask)
    resolved = ResolvedMask()
    used = set()
    nnz = 0
    for number, group in enumerate(groups, first_group):
        names = group.get("param_names")
        if by_name and not names:
            raise PeckerError(
                "the mask is keyed by name, but the optimizer's parameters have no names: pass "
                "model.named_parameters(), groups of such pairs, or mask.bound(model) as the mask"
            )
        whole = []
        for index, param in enumerate(group["params"]):
            label = param_label(group, number, index)
            key = names[index] if by_name and names else param
            if key not in positions_of and param.dtype not in PARAM_DTYPES:
                resolved.indices[param] = torch.empty(0, dtype=torch.int32, device=param.device)
                continue  # `check_param` has seen that it needs no gradient
            if key not in positions_of:
                raise PeckerError(
                    f"the mask does not know parameter {label!r}: give it an empty mask (every "
                    "entry frozen), or leave the parameter out of the optimizer"
                )
            used.add(key)
            shape, positions = positions_of[key]
            if tuple(shape) != tuple(param.shape):
                raise PeckerError(
                    f"the mask of {label!r} has shape {tuple(shape)}, the parameter has "
                    f"{tuple(param.shape)}: the mask was made for another model"
                )
            positions = _positions(positions, label)
            whole.append((param.shape, positions))
            nnz += positions.numel()
            if is_sharded(param):
                local, resolved.shares[param] = split_positions(param, positions)
            else:
                local = positions_on(positions, param.device)
            resolved.indices[param] = local
        resolved.digests.append(mask_digest(whole))
    for key, (_, positions) in positions_of.items():
        if key not in used and _count(positions) > 0:
            what = repr(key) if by_name else f"a parameter of shape {tuple(key.shape)}"
            raise PeckerError(
                f"the mask makes entries of {what} salient, but the optimizer has no such "
                "parameter: pass the parameter too, or drop it from the mask"
            )
    if resolved.indices and nnz == 0:
        raise PeckerError(
            "the mask has no salient entry: nothing would ever be trained; raise its density"
        )
    refuse_different_masks(resolved.shares, resolved.digests)
    return resolved


def mask_digest(positions: list[tuple[torch.Size, Tensor]]) -> str:
    """SHA-256 (hex) of what a mask does to the parameters of one group, in their order.

    Args:
        positions: shape and (nnz,) int32 salient positions of each parameter.
    """
    digest = hashlib.sha256()
    for shape, indices in positions:
        digest.update(f"{tuple(shape)}:{indices.numel()};".encode())
        digest.update(indices.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _lookup(mask: MaskLike) -> tuple[bool, dict[Any, tuple[torch.Size, Tensor]]]:
    """Whether the mask is keyed by name, and key -> (shape, int32 positions or bool tensor)."""
    if hasattr(mask, "indices") and hasattr(mask, "shapes"):
        indices: Mapping[Any, Tensor] = mask.indices
        shapes: Mapping[Any, torch.Size] = mask.shapes
        by_name = all(isinstance(key, str) for key in indices)
        return by_name, {key: (shapes[key], positions) for key, positions in indices.items()}
    if not isinstance(mask, Mapping):
        raise PeckerTypeError(
            "mask must be a SaliencyMask or a mapping from name or parameter to a bool tensor, "
            f"got {type(mask).__name__}"
        )
    for key, dense in mask.items():
        if not isinstance(key, (str, Tensor)):
            raise PeckerTypeError(
                f"mask keys must be names or parameters, got {type(key).__name__}"
            )
        label = repr(key) if isinstance(key, str) else "a parameter"
        if not isinstance(dense, Tensor) or dense.dtype != torch.bool:
            found = dense.dtype if isinstance(dense, Tensor) else type(dense).__name__
            raise PeckerTypeError(f"the mask of {label} must be a bool tensor, got {found}")
        if is_sharded(dense):
            raise PeckerTypeError(f"the mask of {label} is a DTensor: pass mask.full_tensor()")
    kinds = {isinstance(key, str) for key in mask}
    if len(kinds) > 1:
        raise PeckerTypeError("mask keys must be all names or all parameters, got both")
    return kinds != {False}, {key: (dense.shape, dense) for key, dense in mask.items()}


def _count(positions: Tensor) -> int:
    return int(positions.sum()) if positions.dtype == torch.bool else positions.numel()


def _positions(positions: Tensor, label: str) -> Tensor:
    """(nnz,) int32 positions from themselves or from a bool tensor of the parameter's shape."""
    if positions.dtype != torch.bool:
        return positions
    if positions.numel() > _INT32_MAX:
        raise PeckerError(
            f"parameter {label!r} has {positions.numel()} entries, more than 2^31 - 1: "
            "int32 positions cannot reach them; split the parameter"
        )
    return positions.reshape(-1).nonzero().squeeze(1).int()
