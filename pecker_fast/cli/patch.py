"""`pecker-fast patch`: look at patches, put them on models, take them off, change their format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pecker_fast.cli.common import INPUT, PATH, echo
from pecker_fast.cli.output import json_option, result
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
    short_help="Show patches, put them on a model, take them off; other formats.",
    epilog="""\b
Examples:
    pecker-fast patch info no_boots.safetensors
    pecker-fast patch apply MODEL no_boots.safetensors --out erased
    pecker-fast patch remove erased no_boots.safetensors --out restored
    pecker-fast patch export MODEL no_boots.safetensors --to peft-shira --out adapter
    pecker-fast patch import MODEL adapter --from peft-shira --out no_boots.safetensors
""",
)
def patch() -> None:
    """Show what an erased network differs from its base in, apply it to the base, remove it.

    A MODEL is a folder as diffusers saves it: a pipeline, of which the U-Net is taken, or a network
    alone.
    """


@patch.command(short_help="Show what patches hold and where they overlap.")
@click.argument("files", nargs=-1, required=True, type=INPUT)
@json_option
def info(files: tuple[Path, ...]) -> None:
    """Show what each of FILES holds, and what it has in common with those named before it."""
    from pecker_fast.patches.files import read_patch
    from pecker_fast.patches.patch import overlap_of

    patches = [read_patch(file) for file in files]
    overlaps = [
        [overlap_of(one, other) for other in patches[:count]] for count, one in enumerate(patches)
    ]
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

    def lines() -> Iterator[str]:
        for about, one, found in zip(facts, patches, overlaps, strict=True):
            yield f"{one.path}"
            yield f"  {'entries':9} {one.nnz:,} of {one.numel:,} ({one.nnz / one.numel:.2%})"
            yield f"  {'size':9} {about['bytes']:,} bytes"
            yield f"  {'base':9} {one.base}"
            yield f"  {'result':9} {one.result}"
            yield f"  {'mask':9} {one.mask}"
            yield f"  {'made by':9} pecker_fast {one.package}"
            for key, value in one.about.items():
                yield f"  {printable(key, 60):9} {printable(value)}"
            for overlap in found:
                yield f"  {'overlap':9} {overlap}"

    result(lines(), lambda: facts)


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


@patch.command(short_help="Write a patch in a format that others read.")
@_FOLDER
@_FILE
@click.option(
    "--to",
    type=click.Choice(["peft-shira", "lora", "vllm-sparse", "state-dict"]),
    required=True,
    help="An adapter for PEFT (a folder), or a safetensors file.",
)
@click.option("--rank", type=click.IntRange(1, 4096), help="Of a LoRA.  [default: 16]")
@click.option("--out", type=PATH, required=True, help="The folder or file.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def export(model: Path, file: Path, to: str, rank: int | None, out: Path, force: bool) -> None:
    """Write the patch FILE of MODEL, its base, in another format.

    peft-shira is exact but for rounding, vllm-sparse and state-dict to the bit; what a LoRA loses
    is said.
    """
    from pecker_fast.patches.exports import export_patch
    from pecker_fast.patches.folders import read_weights

    if rank is not None and to != "lora":
        raise click.UsageError(f"--rank is for --to lora, not {to}")
    layers = None
    if to in ("peft-shira", "lora"):
        layers = _layers(model)
    else:
        _check_file(out, file, force)
    found = export_patch(
        file,
        read_weights(model),
        to,  # type: ignore[arg-type]  # click checks the choice
        out,
        layers=layers,
        rank=rank or 16,
        force=force,
    )
    echo(f"{out}: {found}")


@patch.command("import", short_help="Make a patch of what others wrote.")
@_FOLDER
@click.argument("source", type=INPUT)
@click.option(
    "--from",
    "kind",
    type=click.Choice(["peft-shira", "vllm-sparse", "state-dict"]),
    required=True,
    help="What SOURCE is.",
)
@click.option("--out", type=PATH, required=True, help="The patch file.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def import_(model: Path, source: Path, kind: str, out: Path, force: bool) -> None:
    """Make a patch of SOURCE, which MODEL is the base of."""
    from pecker_fast.patches.exports import import_patch
    from pecker_fast.patches.folders import read_weights

    _check_file(out, source, force)
    made = import_patch(source, read_weights(model), kind, out, imported_from=kind)
    echo(f"{out}: {made.nnz:,} of {made.numel:,} entries")


def _check_file(out: Path, source: Path, force: bool) -> None:
    from pecker_fast.errors import PeckerError
    from pecker_fast.files import check_output_file

    check_output_file(out, force)
    if out.resolve() == source.resolve():
        raise PeckerError(f"{out}: is what is to be read; choose another file")


def _layers(model: Path) -> Any:
    """The network of a folder as a module without values: which weights are of linear layers."""
    import diffusers
    import torch

    from pecker_fast.errors import PeckerError
    from pecker_fast.files import read_json, shown
    from pecker_fast.models.ddpm import DDPMUNet

    folder = model / "unet" if (model / "unet").is_dir() else model
    config = read_json(folder / "config.json")
    name = config.get("_class_name") if isinstance(config, dict) else None
    try:
        kind: Any = DDPMUNet if name == "DDPMUNet" else getattr(diffusers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin):
            with torch.device("meta"):
                return cast("Any", kind).from_config(config)
    except Exception as error:  # whatever the network's constructor raises
        raise PeckerError(f"{folder / 'config.json'}: makes no {name} ({error})") from error
    raise PeckerError(f"{folder / 'config.json'}: {shown(name)} is no network of diffusers")
