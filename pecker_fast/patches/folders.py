"""Model folders in, model folders out: weights are changed, everything else is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_folder, replacing_folder, write_text
from pecker_fast.masks.files import strip_prefixes
from pecker_fast.masks.mask import PREFIXES
from pecker_fast.masks.verify import FROZEN_NAME, FrozenCheck, check_frozen
from pecker_fast.patches.files import Patch, read_patch

__all__ = ["change_weights", "read_weights"]


def read_weights(model: Path) -> dict[str, Tensor]:
    """The tensors of a folder as diffusers saves it: of a pipeline those of the U-Net.

    Raises:
        PeckerError: the weights are not in one .safetensors file that can be read.
    """
    return _read(_weights_file(model))[0]


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
        model: a folder as diffusers saves it: a pipeline, of which the U-Net is taken, or a network
            alone.
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
            or the weights are not in one .safetensors file that can be read.
    """
    copied = {found.relative_to(model).as_posix() for found in model.rglob("*")}
    writes = {*copied, FROZEN_NAME}
    check_output_folder(out, force, writes=writes, reads=[model, patch, *applied])
    if model.resolve() in out.resolve().parents:
        raise PeckerError(f"{out}: lies in {model}, which is to be copied; choose another folder")
    file = _weights_file(model)
    weights, metadata = _read(file)
    change(weights)

    def stale(folder: str, names: list[str]) -> list[str]:
        return [file.name] if Path(folder) == file.parent else []

    with replacing_folder(out) as partial:
        shutil.copytree(model, partial, ignore=stale)
        copy = partial / file.relative_to(model)
        save_file(weights, copy, metadata=metadata)
        del weights
        check = _check(_read(file)[0], _read(copy)[0], read_patch(patch))
        check.require_unchanged(out)
        write_text(partial / FROZEN_NAME, json.dumps(check.to_dict(), indent=2) + "\n")
    return check


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """The tensors and the metadata of a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {n: opened.get_tensor(n) for n in opened.keys()}, opened.metadata()
    except (OSError, SafetensorError) as error:
        raise PeckerError(f"{file}: cannot be read ({error}); copy the model again") from error


def _check(before: dict[str, Tensor], after: dict[str, Tensor], patch: Patch) -> FrozenCheck:
    """Compare a model with its copy outside the entries of a patch."""
    salient = {}
    for name, tensor in before.items():
        bare = strip_prefixes(name, PREFIXES)
        if bare in patch.bits:
            salient[name] = torch.from_numpy(patch.salient(bare)).view(tensor.shape)
    digests = {"patch": patch.digest, "mask": patch.mask}
    return replace(check_frozen(before, after, salient), digests=digests)


def _weights_file(model: Path) -> Path:
    """The one file with the weights of the network in a pipeline, or of a network alone."""
    parts = (model / part for part in ("unet", "transformer"))
    folder = next((part for part in parts if part.is_dir()), model)
    if not folder.is_dir():
        raise PeckerError(
            f"{model}: no such folder; give one that diffusers' save_pretrained wrote"
        )
    found = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".bin", ".pt")]
    if not found:
        raise PeckerError(f"{folder}: holds no .safetensors file with weights")
    if len(found) > 1 or found[0].suffix != ".safetensors":
        names = ", ".join(f.name for f in found)
        raise PeckerError(
            f"{folder}: expected its weights in one .safetensors file, found {names}; load the "
            "network with diffusers and save it again with save_pretrained, alone in its folder"
        )
    return found[0]
