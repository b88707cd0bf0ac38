"""Patches in formats that others read.

A patch holds bits XOR bits, which mean nothing without the base, so an export needs the base's
weights, which are proved by their digests:

    peft-shira   a folder for `PeftModel.from_pretrained`: erased minus base at the salient entries
                 of linear layers; other modules that change, whole. Exact where base + difference
                 rounds to the erased value
    vllm-sparse  a safetensors file: flat positions and erased values of each tensor, as vLLM's
                 SparseWeightPatch and CheckpointWeightPatch take them
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_folder, replacing_folder, write_text
from pecker_fast.masks.checks import Model
from pecker_fast.masks.files import strip_prefixes
from pecker_fast.masks.mask import PREFIXES
from pecker_fast.patches.checks import tensors_for
from pecker_fast.patches.files import Patch, flat_bits, read_patch
from pecker_fast.patches.patch import require_state
from pecker_fast.torch_files import save_tensors

__all__ = ["EXPORTS", "export_patch"]

EXPORTS = ("peft-shira", "vllm-sparse")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_ROOT = "base_model.model."


def export_patch(
    file: str | os.PathLike[str],
    base: Model,
    to: str,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
) -> int:
    """Write a patch in another format, whole or not at all.

    Args:
        file: written by `save_patch`.
        base: the network it was made for, or its tensors by name; for PEFT, which needs to know
            which weights are of linear layers, the network as a module.
        to: one of `EXPORTS`.
        out: the file (.safetensors), or for PEFT the folder.
        force: replace the folder.

    Returns:
        How many entries of an adapter end at another value than the erased one, by rounding.

    Raises:
        PeckerError: the patch or the network is not what it should be, the format cannot hold the
            patch, or `out` cannot be written.
    """
    if to not in EXPORTS:
        raise PeckerError(f"an export must be one of {', '.join(EXPORTS)}, got {to!r}")
    patch, path = read_patch(file), Path(out)
    old = tensors_for(base, patch)
    require_state(patch, old, "base")
    new = {name: _erased(patch, name, old[name]) for name in patch.values}
    if to == "vllm-sparse":
        save_tensors(path, *_sparse(new, patch.positions))
        return 0
    if not isinstance(base, nn.Module):
        raise PeckerError(f"{to}: the base must be a torch.nn.Module, got {type(base).__name__}")
    config, tensors, inexact = _shira(base, old, new, patch.positions)
    check_output_folder(path, force, writes=set(_ADAPTER_FILES), reads=[Path(file)])
    with replacing_folder(path) as partial:
        partial.mkdir()
        save_tensors(partial / _ADAPTER_FILES[1], tensors, {"format": "pt"})
        write_text(partial / _ADAPTER_FILES[0], json.dumps(config, indent=2) + "\n")
    return inexact


def _erased(patch: Patch, name: str, tensor: Tensor) -> Tensor:
    """The erased tensor on the CPU, contiguous."""
    bits = flat_bits(name, tensor).clone()
    bits[patch.positions[name]] ^= torch.from_numpy(patch.values[name])
    return bits.view(tensor.dtype).view(tensor.shape)


def _sparse(
    new: Mapping[str, Tensor], positions: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`indices.NAME` and `values.NAME`, and the metadata of their file."""
    content = {}
    for name, tensor in new.items():
        values = tensor.flatten()[positions[name]]
        if not values.is_floating_point() or values.isnan().any():
            found = "NaN" if values.is_floating_point() else str(values.dtype)
            raise PeckerError(
                f"vllm-sparse cannot hold {name!r}: it changes to {found}, which vLLM takes for "
                "unchanged or refuses"
            )
        content[f"indices.{name}"], content[f"values.{name}"] = positions[name], values
    shapes = {name: list(tensor.shape) for name, tensor in new.items()}
    return content, {"format": "pecker_fast.sparse", "version": "1", "shapes": json.dumps(shapes)}


def _shira(
    network: nn.Module,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    positions: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Settings and tensors of an adapter, and how many entries rounding makes inexact.

    Each of its layers has r * (rows + columns) entries, with one r for all: what a layer has fewer
    is filled up with zeros at its last position. A layer that would have more entries than its
    weight, and every module that is not linear, is saved whole (`modules_to_save`).

    Raises:
        PeckerError: no linear layer changes, or a tensor that PEFT has no place for.
    """
    owners = _owners(network, new)
    shared = Counter(owner for owner, _ in owners.values())
    linear = {
        name: -(-len(positions[name]) // sum(new[name].shape))
        for name, (owner, module) in owners.items()
        # Its subclass in MultiheadAttention is never called: its weight is read.
        if type(module) is nn.Linear and name.endswith(".weight") and shared[owner] == 1
    }
    while linear:
        rank = max(linear.values())
        full = {n for n in linear if rank * sum(new[n].shape) > new[n].numel()}
        if not full:
            break
        linear = {name: r for name, r in linear.items() if name not in full}
    else:
        raise PeckerError(
            "peft-shira cannot hold the patch: it changes no weight of a linear layer by itself"
        )
    tensors: dict[str, Tensor] = {}
    inexact = 0
    for name in linear:
        where, columns = positions[name], new[name].shape[1]
        before, after = (each[name].detach().cpu().flatten()[where] for each in (old, new))
        wide = torch.float64 if before.dtype == torch.float64 else torch.float32
        delta = (after.double() - before.double()).float()
        found = (before.to(wide) + delta).to(after.dtype)
        inexact += int(((found != after) & ~(found.isnan() & after.isnan())).sum())
        count = rank * sum(new[name].shape)
        padded = torch.cat([where, where[-1:].expand(count - len(where))])
        layer = _ROOT + name.removesuffix(".weight")
        tensors[f"{layer}.shira_weight"] = nn.functional.pad(delta, (0, count - len(where)))
        tensors[f"{layer}.shira_indices"] = torch.stack([padded // columns, padded % columns])
    whole = {owner: module for name, (owner, module) in owners.items() if name not in linear}
    for owner, module in whole.items():
        if any(module.children()):
            raise PeckerError(
                f"peft-shira cannot hold {owner!r}: PEFT saves whole modules without others in "
                "them only"
            )
        for key in module.state_dict():
            name = f"{owner}.{key}"
            tensors[_ROOT + name] = new.get(name, old[name]).detach().cpu().contiguous().clone()
    targets = "|".join(re.escape(name.removesuffix(".weight")) for name in sorted(linear))
    config = {
        "peft_type": "SHIRA",
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "r": rank,
        "target_modules": f"(?:{targets})",  # a pattern: a list would match ends of other names
        "mask_type": "pecker_fast",  # any name that is not PEFT's: positions are in the file
        "modules_to_save": sorted(whole) or None,
    }
    return config, tensors, inexact


def _owners(network: nn.Module, names: Mapping[str, Tensor]) -> dict[str, tuple[str, nn.Module]]:
    """Name of a tensor -> name of the module it lies in, and that module."""
    modules = {
        strip_prefixes(f"{owner}.", PREFIXES).removesuffix("."): module
        for owner, module in network.named_modules(remove_duplicate=False)
    }
    uses = Counter(
        id(tensor)
        for module in modules.values()
        for tensor in (*module._parameters.values(), *module._buffers.values())
    )
    owners = {}
    for name in names:
        owner, _, key = name.rpartition(".")
        if not owner or uses[id(getattr(modules[owner], key))] > 1:
            raise PeckerError(f"PEFT has no place for {name!r}: it is tied, or lies in no layer")
        owners[name] = (owner, modules[owner])
    return owners
