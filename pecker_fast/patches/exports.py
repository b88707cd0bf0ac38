"""Patches in formats that others read, and back.

    export_patch(file, base, "peft-shira", "adapter")      # for PeftModel.from_pretrained
    import_patch("adapter", base, "peft-shira", "patch.safetensors")

A patch holds bits XOR bits, which mean nothing without the base, so each way needs the base's
weights, and those of an export are proved by their digests:

    peft-shira   a folder for PEFT: erased minus base at the salient entries of linear layers;
                 other modules that change, whole. Exact where base + difference rounds to the
                 erased value
    lora         a folder for PEFT: the best approximation of each linear or convolution weight's
                 difference by that rank. Says what is lost; cannot be imported
    vllm-sparse  a safetensors file: flat positions and erased values of each tensor, as vLLM's
                 SparseWeightPatch and CheckpointWeightPatch take them
    state-dict   a safetensors file: the erased tensors that change, whole, for
                 `load_state_dict(..., strict=False)`
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_folder, few, replacing_folder, write_text
from pecker_fast.masks.checks import Model
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.patches import imports
from pecker_fast.patches.adapters import ADAPTER_FILES, Adapter, lora, shira
from pecker_fast.patches.checks import tensors_for, tensors_of
from pecker_fast.patches.files import Patch, flat_bits, read_patch
from pecker_fast.patches.patch import require_base, save_patch
from pecker_fast.torch_files import save_tensors

__all__ = ["EXPORTS", "IMPORTS", "Export", "export_patch", "import_patch"]

ExportFormat = Literal["peft-shira", "lora", "vllm-sparse", "state-dict"]
EXPORTS = ("peft-shira", "lora", "vllm-sparse", "state-dict")
IMPORTS = ("peft-shira", "vllm-sparse", "state-dict")


@dataclass(frozen=True)
class Export:
    """What an export holds of its patch."""

    nbytes: int  # of the file or folder
    # 2-norm of the part of the change that it does not reproduce, over that of the change.
    lost: float = 0.0
    inexact: int = 0  # entries of a SHiRA adapter that end at another value than the erased one
    left_out: tuple[str, ...] = ()  # names of tensors that change and that it cannot hold

    def __str__(self) -> str:
        found = [f"{self.nbytes:,} bytes"]
        if self.inexact:
            found.append(f"{self.inexact:,} entries not exact")
        if self.left_out:
            found.append(f"without {few(self.left_out)}")
        found.append(f"{self.lost:.3g} of the change lost" if self.lost else "exact")
        return ", ".join(found)


def export_patch(
    file: str | os.PathLike[str],
    base: Model,
    to: ExportFormat,
    out: str | os.PathLike[str],
    *,
    layers: nn.Module | None = None,
    rank: int = 16,
    force: bool = False,
) -> Export:
    """Write a patch in another format, whole or not at all.

    Args:
        file: written by `save_patch`.
        base: the network it was made for, or its tensors by name.
        to: "peft-shira", "lora", "vllm-sparse" or "state-dict".
        out: the file (.safetensors), or for PEFT the folder.
        layers: for PEFT where `base` is a mapping: the network as a module, whose values do not
            matter (it may be on the meta device).
        rank: of a LoRA.
        force: replace `out`.

    Returns:
        What the export holds.

    Raises:
        PeckerError: the patch or the network is not what it should be, the format cannot hold the
            patch, or `out` cannot be written.
    """
    patch = read_patch(file)
    tensors = tensors_for(base, patch)
    require_base(patch, tensors)
    new = {name: _erased(patch, name, tensors[name]) for name in patch.values}
    path = Path(out)
    if to in ("vllm-sparse", "state-dict"):
        content, metadata = new, {"format": "pt"}
        if to == "vllm-sparse":
            content, metadata = _sparse(patch, new)
        save_tensors(path, content, metadata)
        return Export(path.stat().st_size)
    if to not in EXPORTS:
        raise PeckerError(f"an export must be one of {', '.join(EXPORTS)}, got {to!r}")
    modules = base if isinstance(base, nn.Module) else layers
    if not isinstance(modules, nn.Module):
        raise PeckerError(
            f"{to} needs to know which weights are of linear layers: give the network as a module, "
            "as the base or as layers"
        )
    if to == "lora":
        adapter = lora(modules, tensors, new, rank)
    else:
        salient = {n: torch.from_numpy(patch.salient(n)).nonzero().flatten() for n in new}
        adapter = shira(modules, tensors, new, salient)
    _write_folder(path, adapter, force, file)
    size = sum(found.stat().st_size for found in path.iterdir())
    return Export(size, adapter.lost, adapter.inexact, adapter.left_out)


def import_patch(
    source: str | os.PathLike[str],
    base: Model,
    kind: str,
    path: str | os.PathLike[str],
    **about: Any,
) -> Patch:
    """Make a patch of what `export_patch` or another program wrote.

    Salient are the entries that the source has positions of; in a state dict, and in modules that a
    PEFT folder has whole, those that differ from the base.

    Args:
        source: the file, or the folder of a SHiRA adapter.
        base: the network that the source is for, or its tensors by name.
        kind: "peft-shira", "vllm-sparse" or "state-dict".
        path: the patch file.
        **about: as in `save_patch`.

    Raises:
        PeckerError: the source is not what it should be, or does not fit the base; or as
            `save_patch`.
    """
    readers = {
        "peft-shira": imports.read_shira,
        "vllm-sparse": imports.read_sparse,
        "state-dict": imports.read_state_dict,
    }
    if kind not in readers:
        raise PeckerError(f"an import must be of {', '.join(IMPORTS)}, got {kind!r}")
    before = tensors_of(base, "base")
    changed = readers[kind](Path(source), before)
    where = {name: positions for name, (_, positions) in changed.items() if len(positions)}
    if not where:
        raise PeckerError(f"{os.fspath(source)!r} changes nothing in this base")
    mask = SaliencyMask(where, {name: before[name].shape for name in where})
    after = before | {name: tensor for name, (tensor, _) in changed.items()}
    return save_patch(path, before, after, mask, **about)


def _erased(patch: Patch, name: str, tensor: Tensor) -> Tensor:
    """The erased tensor on the CPU, contiguous."""
    bits = flat_bits(name, tensor).clone()
    bits.numpy()[patch.salient(name)] ^= patch.values[name]
    return bits.view(tensor.dtype).view(tensor.shape)


def _sparse(patch: Patch, new: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    content = {}
    for name, tensor in new.items():
        positions = torch.from_numpy(patch.salient(name)).nonzero().flatten()
        values = tensor.flatten()[positions]
        if not values.is_floating_point() or values.isnan().any():
            found = "NaN" if values.is_floating_point() else str(values.dtype)
            raise PeckerError(
                f"vllm-sparse cannot hold {name!r}: it changes to {found}, which vLLM takes for "
                "unchanged or refuses; export to state-dict"
            )
        content[f"indices.{name}"], content[f"values.{name}"] = positions.int(), values
    shapes = {name: list(tensor.shape) for name, tensor in new.items()}
    return content, {"format": imports.SPARSE_FORMAT, "version": "1", "shapes": json.dumps(shapes)}


def _write_folder(path: Path, adapter: Adapter, force: bool, patch: str | os.PathLike[str]) -> None:
    check_output_folder(path, force, writes=set(ADAPTER_FILES), reads=[Path(patch)])
    with replacing_folder(path) as partial:
        partial.mkdir()
        save_tensors(partial / ADAPTER_FILES[1], adapter.tensors, {"format": "pt"})
        write_text(partial / ADAPTER_FILES[0], json.dumps(adapter.config, indent=2) + "\n")
