"""Model folders in, model folders out: weights are changed, everything else is copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_folder, replacing_folder

__all__ = ["change_weights"]


def change_weights(
    model: Path,
    out: Path,
    change: Callable[[dict[str, Tensor]], None],
    *,
    patches: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Copy a model folder with changed weights, whole or not at all.

    Args:
        model: a folder as diffusers saves it: a pipeline, of which the U-Net is taken, or a network
            alone.
        out: the copy; may be `model` itself.
        change: changes the weights by name in place, such as `lambda w: apply_patch(w, file)`.
        patches: the files that `change` reads, which must not be replaced.
        force: replace a copy of the model that exists, `model` itself too.

    Raises:
        PeckerError: `out` exists, holds other things, is a file, lies in `model` or in no folder;
            or the weights are not in one .safetensors file that can be read.
    """
    copied = {found.relative_to(model).as_posix() for found in model.rglob("*")}
    check_output_folder(out, force, writes=copied, reads=[model, *patches])
    if model.resolve() in out.resolve().parents:
        raise PeckerError(f"{out}: lies in {model}, which is to be copied; choose another folder")
    file = _weights_file(model)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            weights = {name: opened.get_tensor(name) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise PeckerError(f"{file}: cannot be read ({error}); copy the model again") from error
    change(weights)

    def stale(folder: str, names: list[str]) -> list[str]:
        return [file.name] if Path(folder) == file.parent else []

    with replacing_folder(out) as partial:
        shutil.copytree(model, partial, ignore=stale)
        save_file(weights, partial / file.relative_to(model), metadata=metadata)


def _weights_file(model: Path) -> Path:
    """The one file with the weights of the U-Net in a pipeline, or of a network alone."""
    folder = model / "unet" if (model / "unet").is_dir() else model
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
