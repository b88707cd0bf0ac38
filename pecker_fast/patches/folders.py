"""Model folders in, model folders out: weights are changed, everything else is copied."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_folder, few, replacing_folder, write_text
from pecker_fast.masks.files import strip_prefixes
from pecker_fast.masks.mask import PREFIXES
from pecker_fast.masks.verify import FROZEN_NAME, FrozenCheck, check_frozen
from pecker_fast.patches.files import Patch, read_patch
from pecker_fast.torch_files import open_tensors

__all__ = ["change_weights", "network_folder", "read_weights"]


def network_folder(model: Path) -> Path:
    """Where the network of a folder lies: of a pipeline the U-Net or transformer, or `model`.

    Raises:
        PeckerError: no such folder.
    """
    parts = (model / part for part in ("unet", "transformer"))
    folder = next((part for part in parts if part.is_dir()), model)
    if not folder.is_dir():
        raise PeckerError(
            f"{model}: no such folder; give one that diffusers' save_pretrained wrote"
        )
    return folder


def read_weights(model: Path) -> dict[str, Tensor]:
    """The tensors of a folder as diffusers saves it: of a pipeline those of its network.

    Raises:
        PeckerError: the weights are in no .safetensors files that can be read.
    """
    return _read_all(_weights_files(model))


def change_weights(
    model: Path,
    out: Path,
    change: Callable[[dict[str, Tensor]], None],
    *,
    patch: Path,
    applied: Sequence[Path] = (),
    force: bool = False,
) -> FrozenCheck:
    """Copy a model folder with changed weights, whole or not at all.

    The copy is read back, and its frozen entries compared with the model's bit by bit. What came of
    it is kept in the copy as frozen.json, with the digests of the patch and of its mask.

    Args:
        model: a folder as diffusers saves it, of a pipeline or of a network alone.
        out: the copy; may be `model` itself.
        change: changes the weights by name in place, such as `lambda w: apply_patch(w, file)`.
        patch: whose entries may change.
        applied: other files that `change` reads, which must not be replaced either.
        force: replace a copy of the model that exists, `model` itself too.

    Returns:
        The comparison.

    Raises:
        FrozenChangedError: a frozen entry has changed; `out` is as it was.
        PeckerError: `out` exists, holds other things, is a file, lies in `model` or in no folder;
            or the weights are in no .safetensors files that can be read.
    """
    copied = {found.relative_to(model).as_posix() for found in model.rglob("*")}
    writes = {*copied, FROZEN_NAME}
    check_output_folder(out, force, writes=writes, reads=[model, patch, *applied])
    if model.resolve() in out.resolve().parents:
        raise PeckerError(f"{out}: lies in {model}, which is to be copied; choose another folder")
    files = _weights_files(model)
    weights = _read_all(files)
    change(weights)

    def stale(folder: str, names: list[str]) -> list[str]:
        return [file.name for file in files if Path(folder) == file.parent]

    with replacing_folder(out) as partial:
        shutil.copytree(model, partial, ignore=stale)
        copies = [partial / file.relative_to(model) for file in files]
        for file, copy in zip(files, copies, strict=True):
            with open_tensors(file) as opened:
                names, metadata = list(opened.keys()), opened.metadata()
            save_file({name: weights[name] for name in names}, copy, metadata=metadata)
        del weights
        check = _check(_read_all(files), _read_all(copies), read_patch(patch))
        check.require_unchanged(out)
        write_text(partial / FROZEN_NAME, json.dumps(check.to_dict(), indent=2) + "\n")
    return check


def _read_all(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of one file, or of all shards."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with open_tensors(file) as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
    return tensors


def _check(before: dict[str, Tensor], after: dict[str, Tensor], patch: Patch) -> FrozenCheck:
    """Compare a model with its copy outside the entries of a patch."""
    salient = {}
    for name, tensor in before.items():
        if (positions := patch.positions.get(strip_prefixes(name, PREFIXES))) is not None:
            salient[name] = torch.zeros(tensor.shape, dtype=torch.bool)
            salient[name].view(-1)[positions] = True
    digests = {"patch": patch.digest, "mask": patch.mask}
    return replace(check_frozen(before, after, salient), digests=digests)


def _weights_files(model: Path) -> list[Path]:
    """Those with the weights of a pipeline's network, or of a network alone: one, or shards."""
    folder = network_folder(model)
    found = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".bin", ".pt")]
    stems = {re.sub(r"-\d{5}-of-\d{5}$", "", file.stem) for file in found}  # one of all shards
    if len(stems) != 1 or any(file.suffix != ".safetensors" for file in found):
        raise PeckerError(
            f"{folder}: expected its weights in one .safetensors file or its shards, found "
            f"{few(file.name for file in found) or 'none'}; load the network with diffusers and "
            "save it again with save_pretrained, alone in its folder"
        )
    return found
