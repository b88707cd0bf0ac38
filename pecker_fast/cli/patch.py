"""`pecker-fast patch`: look at patches, put them on a model folder, take them off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pecker_fast.cli.common import output_folder
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["patch"]

_FOLDER = click.argument("model", type=click.Path(path_type=Path))
_FILE = click.argument("file", type=click.Path(path_type=Path))
_OUT = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the result."
)
_APPLIED = click.option(
    "--applied",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A patch that MODEL carries; may be given again, in the order they were applied.",
)
_FORCE = click.option(
    "--force", is_flag=True, help="Replace a copy of the model that exists, MODEL too."
)


@click.group(
    short_help="Show patches, put them on a model, take them off.",
    epilog="""\b
Examples:
    pecker-fast patch info no_boots.safetensors
    pecker-fast patch apply MODEL no_boots.safetensors --out erased
    pecker-fast patch remove erased no_boots.safetensors --out restored
""",
)
def patch() -> None:
    """Show what an erased network differs from its base in, apply it to the base, remove it.

    A MODEL is a folder as diffusers saves it: a pipeline, of which the U-Net is taken, or a network
    alone.
    """


@patch.command(short_help="Show what patches hold and where they overlap.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(files: tuple[Path, ...], as_json: bool) -> None:
    """Show what each of FILES holds, and what it has in common with those named before it."""
    from pecker_fast.patches.files import read_patch
    from pecker_fast.patches.patch import overlap_of

    patches = [read_patch(file) for file in files]
    overlaps = [
        [overlap_of(one, other) for other in patches[:count]] for count, one in enumerate(patches)
    ]
    if as_json:
        facts = [
            {
                "file": one.path,
                "bytes": file.stat().st_size,
                "digest": one.digest,
                "base": one.base,
                "result": one.result,
                "entries": one.nnz,
                "of": one.numel,
                "package": one.package,
                "about": one.about,
                "overlaps": [
                    {"file": o.file, "entries": o.entries, "share": o.share, "blocks": o.blocks}
                    for o in found
                ],
            }
            for file, one, found in zip(files, patches, overlaps, strict=True)
        ]
        click.echo(json.dumps(facts, indent=2))
        return
    for file, one, found in zip(files, patches, overlaps, strict=True):
        click.echo(one.path)
        click.echo(f"  {'entries':9} {one.nnz:,} of {one.numel:,} ({one.nnz / one.numel:.2%})")
        click.echo(f"  {'size':9} {file.stat().st_size:,} bytes")
        click.echo(f"  {'base':9} {one.base}")
        click.echo(f"  {'result':9} {one.result}")
        click.echo(f"  {'made by':9} pecker_fast {one.package}")
        for key, value in one.about.items():
            click.echo(f"  {key:9} {value}")
        for overlap in found:
            click.echo(f"  {'overlap':9} {overlap}")


@patch.command(short_help="Make an erased model of its base.")
@_FOLDER
@_FILE
@_OUT
@_APPLIED
@click.option(
    "--overlap",
    type=click.Choice(["refuse", "last"]),
    default="refuse",
    show_default=True,
    help="Entries that a patch of MODEL has too: refuse, or take the values of FILE.",
)
@_FORCE
def apply(
    model: Path, file: Path, out: Path, applied: tuple[Path, ...], overlap: str, force: bool
) -> None:
    """Write MODEL with the patch FILE applied to it into another folder."""
    from pecker_fast.patches.patch import Overlap, apply_patch

    found: list[Overlap] = []

    def change(weights: dict[str, Tensor]) -> None:
        found.extend(
            apply_patch(
                weights,
                file,
                applied=applied or None,
                overlap=overlap,  # type: ignore[arg-type]  # click checks the choice
            )
        )

    _rewrite(model, out, force, [file, *applied], change)
    for one in found:
        click.echo(f"overlap: {one}")
    click.echo(out)


@patch.command(short_help="Restore the base of an erased model.")
@_FOLDER
@_FILE
@_OUT
@_APPLIED
@_FORCE
def remove(model: Path, file: Path, out: Path, applied: tuple[Path, ...], force: bool) -> None:
    """Write MODEL without the patch FILE into another folder."""
    from pecker_fast.patches.patch import remove_patch

    def change(weights: dict[str, Tensor]) -> None:
        remove_patch(weights, file, applied=applied or None)

    _rewrite(model, out, force, [file, *applied], change)
    click.echo(out)


def _rewrite(
    model: Path,
    out: Path,
    force: bool,
    patches: Sequence[Path],
    change: Callable[[dict[str, Tensor]], None],
) -> None:
    """Copy a model folder with changed weights, whole or not at all; onto itself with --force."""
    copied = {found.relative_to(model).as_posix() for found in model.rglob("*")}
    output_folder(out, force, writes=copied, reads=[model, *patches])
    if model.resolve() in out.resolve().parents:
        raise PeckerError(f"{out}: lies in {model}, which is to be copied; choose another folder")
    file = _weights_file(model)

    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    from pecker_fast.files import replacing_folder

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
