"""`pecker-fast patch`: look at patches, put them on a model folder, take them off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pecker_fast.cli.common import INPUT, PATH, echo
from pecker_fast.errors import printable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["patch"]

_FOLDER = click.argument("model", type=INPUT)
_FILE = click.argument("file", type=INPUT)
_OUT = click.option("--out", type=PATH, required=True, help="Folder for the result.")
_APPLIED = click.option(
    "--applied",
    type=INPUT,
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
@click.argument("files", nargs=-1, required=True, type=INPUT)
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
                "mask": one.mask,
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
        echo(one.path)
        echo(f"  {'entries':9} {one.nnz:,} of {one.numel:,} ({one.nnz / one.numel:.2%})")
        echo(f"  {'size':9} {file.stat().st_size:,} bytes")
        echo(f"  {'base':9} {one.base}")
        echo(f"  {'result':9} {one.result}")
        echo(f"  {'mask':9} {one.mask}")
        echo(f"  {'made by':9} pecker_fast {one.package}")
        for key, value in one.about.items():
            echo(f"  {printable(key, 60):9} {printable(value)}")
        for overlap in found:
            echo(f"  {'overlap':9} {overlap}")


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
    from pecker_fast.patches.folders import change_weights
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

    check = change_weights(model, out, change, patch=file, applied=applied, force=force)
    for one in found:
        echo(f"overlap: {one}")
    echo(check.sentence())
    echo(out)


@patch.command(short_help="Restore the base of an erased model.")
@_FOLDER
@_FILE
@_OUT
@_APPLIED
@_FORCE
def remove(model: Path, file: Path, out: Path, applied: tuple[Path, ...], force: bool) -> None:
    """Write MODEL without the patch FILE into another folder."""
    from pecker_fast.patches.folders import change_weights
    from pecker_fast.patches.patch import remove_patch

    def change(weights: dict[str, Tensor]) -> None:
        remove_patch(weights, file, applied=applied or None)

    check = change_weights(model, out, change, patch=file, applied=applied, force=force)
    echo(check.sentence())
    echo(out)
