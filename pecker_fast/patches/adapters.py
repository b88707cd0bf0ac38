"""Adapters for PEFT made of a network's difference: SHiRA and LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import few
from pecker_fast.masks.files import strip_prefixes
from pecker_fast.masks.mask import PREFIXES

__all__ = ["ADAPTER_FILES", "ROOT", "Adapter", "lora", "shira"]

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
ROOT = "base_model.model."
_COST = 12  # bytes of an entry in a SHiRA file: row, column, float32


@dataclass(frozen=True)
class Adapter:
    """What the two files of a PEFT folder hold, and what they do not (`exports.Export`)."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    lost: float
    inexact: int
    left_out: tuple[str, ...] = ()


def shira(
    network: nn.Module,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    salient: Mapping[str, Tensor],
) -> Adapter:
    """A SHiRA adapter.

    Each of its layers has r * (rows + columns) entries, with one r for all: what a layer has fewer
    is filled up with zeros at its last position. r is that of the smallest file; layers that need
    more, and all modules that are not linear, are saved whole (`modules_to_save`).

    Args:
        network: the modules; values do not matter.
        old: name -> tensor of the base.
        new: name -> (same shape) erased tensor, of those that have salient entries.
        salient: name -> (nnz,) int64 sorted positions; the same names.

    Raises:
        PeckerError: no linear layer changes, or a tensor that PEFT has no place for.
    """
    owners = _owners(network, new)
    needed = {}
    for name, (owner, module) in owners.items():
        others = [other for other, (same, _) in owners.items() if same == owner and other != name]
        # Its subclass in MultiheadAttention is never called: its weight is read.
        if type(module) is nn.Linear and name.endswith(".weight") and not others:
            needed[name] = -(-len(salient[name]) // sum(new[name].shape))
    rank = min(sorted(set(needed.values())), key=lambda r: _bytes(r, needed, new), default=0)
    sparse = [name for name in needed if _fits(rank, needed[name], new[name])]
    if not sparse:
        raise PeckerError(
            "peft-shira cannot hold the patch: it changes no weight of a linear layer by itself; "
            "export to state-dict"
        )
    tensors: dict[str, Tensor] = {}
    change = lost = 0.0
    inexact = 0
    for name in sparse:
        before, after = old[name].detach().cpu().flatten(), new[name].flatten()
        where = salient[name]
        before, after = before[where], after[where]
        wide = torch.float64 if before.dtype == torch.float64 else torch.float32
        delta = (after.double() - before.double()).float()
        found = (before.to(wide) + delta).to(after.dtype)
        wrong = (found != after) & ~(found.isnan() & after.isnan())
        inexact += int(wrong.sum())
        lost += float((found[wrong].double() - after[wrong].double()).square().sum())
        change += float(delta.double().square().sum())
        count = rank * sum(new[name].shape)
        padded = torch.cat([where, where[-1:].expand(count - len(where))])
        columns = new[name].shape[1]
        layer = ROOT + name.removesuffix(".weight")
        tensors[f"{layer}.shira_weight"] = torch.zeros(count)
        tensors[f"{layer}.shira_weight"][: len(where)] = delta
        tensors[f"{layer}.shira_indices"] = torch.stack([padded // columns, padded % columns]).int()
    whole = {owner: module for name, (owner, module) in owners.items() if name not in sparse}
    for owner, module in whole.items():
        if any(module.children()):
            raise PeckerError(
                f"peft-shira cannot hold {owner!r}: PEFT saves whole modules without others in "
                "them only; export to state-dict"
            )
        for key in module.state_dict():
            name = strip_prefixes(f"{owner}.{key}", PREFIXES)
            tensor = new.get(name, old[name]).detach().cpu()
            tensors[ROOT + name] = tensor.contiguous().clone()
    for name in new.keys() - set(sparse):
        difference = new[name].double() - old[name].detach().cpu().double()
        change += float(difference.square().sum())
    config = {
        **_config("SHIRA", rank, sparse),
        "mask_type": "pecker_fast",  # any name that is not PEFT's: positions are in the file
        "modules_to_save": sorted(whole) or None,
    }
    return Adapter(config, tensors, (lost / change) ** 0.5 if change else 0.0, inexact)


def lora(
    network: nn.Module, old: Mapping[str, Tensor], new: Mapping[str, Tensor], rank: int
) -> Adapter:
    """A LoRA adapter: of each linear and convolution weight's difference the truncated SVD.

    See `shira` for what is not said here; `rank` is of the approximation.

    Raises:
        PeckerError: no such weight changes, a rank below 1, or a difference that is not finite.
    """
    if rank < 1:
        raise PeckerError(f"the rank of a LoRA must be at least 1, got {rank}")
    tensors: dict[str, Tensor] = {}
    names = []
    change = lost = 0.0
    for name, (owner, module) in _owners(network, new).items():
        difference = new[name].double() - old[name].detach().cpu().double()
        if not difference.isfinite().all():
            raise PeckerError(f"lora cannot hold {name!r}: it changes from or to inf or NaN")
        change += float(difference.square().sum())
        plain = type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
        if plain and name.endswith(".weight"):
            down, up = _truncated(difference.flatten(1), rank)
            difference -= (up.double() @ down.double()).view_as(difference)
            names.append(name)
            shape = difference.shape
            tensors[f"{ROOT}{owner}.lora_A.weight"] = down.view(rank, *shape[1:])
            tensors[f"{ROOT}{owner}.lora_B.weight"] = up.view(
                shape[0], rank, *[1] * (len(shape) - 2)
            )
        lost += float(difference.square().sum())
    if not names:
        raise PeckerError(
            "lora cannot hold the patch: it changes no weight of a linear or convolution layer; "
            "export to state-dict"
        )
    config = {
        **_config("LORA", rank, names),
        "lora_alpha": rank,  # scaling 1
        "lora_dropout": 0.0,
        "bias": "none",
    }
    left_out = tuple(sorted(new.keys() - set(names)))
    return Adapter(config, tensors, (lost / change) ** 0.5 if change else 0.0, 0, left_out)


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(rank, columns) and (rows, rank) float32, whose product is the nearest of that rank.

    By the eigenvectors of the smaller Gram matrix, in float64: the singular vectors of the larger
    side follow from them, and a convolution's other side has thousands of columns.
    """
    rows, columns = matrix.shape
    tall = rows > columns
    gram = matrix.T @ matrix if tall else matrix @ matrix.T
    vectors = torch.linalg.eigh(gram)[1].flip(1)[:, :rank]  # the largest come last
    vectors = nn.functional.pad(vectors, (0, rank - vectors.shape[1]))
    down, up = (vectors.T, matrix @ vectors) if tall else (vectors.T @ matrix, vectors)
    return down.float().contiguous(), up.float().contiguous()


def _owners(network: nn.Module, names: Mapping[str, Tensor]) -> dict[str, tuple[str, nn.Module]]:
    """Name of a tensor -> name of the module it lies in, and that module."""
    places: dict[str, tuple[str, nn.Module]] = {}
    twins: dict[int, list[str]] = {}
    for owner, module in network.named_modules(remove_duplicate=False):
        bare = strip_prefixes(f"{owner}.", PREFIXES).removesuffix(".")
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                name = f"{bare}.{key}" if bare else key
                places[name] = (bare, module)
                twins.setdefault(id(tensor), []).append(name)
    if missing := [name for name in names if name not in places]:
        raise PeckerError(f"the module has no {few(missing)}, which the patch changes")
    tied = {name for group in twins.values() if len(group) > 1 for name in group}
    if bad := [name for name in names if name in tied or not places[name][0]]:
        raise PeckerError(
            f"PEFT has no place for {few(bad)}: it is tied, or lies in no layer; export to "
            "state-dict"
        )
    return {name: places[name] for name in names}


def _fits(rank: int, needed: int, tensor: Tensor) -> bool:
    return needed <= rank and rank * sum(tensor.shape) <= tensor.numel()


def _bytes(rank: int, needed: Mapping[str, int], new: Mapping[str, Tensor]) -> int:
    """Bytes of the linear layers in a SHiRA file of that rank."""
    return sum(
        _COST * rank * sum(new[name].shape) if _fits(rank, least, new[name]) else new[name].nbytes
        for name, least in needed.items()
    )


def _config(kind: str, rank: int, names: list[str]) -> dict[str, Any]:
    """What both kinds' adapter_config.json have."""
    layers = "|".join(re.escape(name.removesuffix(".weight")) for name in sorted(names))
    return {
        "peft_type": kind,
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "r": rank,
        "target_modules": f"(?:{layers})",  # a pattern: a list would match ends of other names
    }
