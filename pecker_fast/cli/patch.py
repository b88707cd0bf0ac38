"""`pecker-fast patch`: look at patches, put them on models, take them off, export them."""

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
    help="Another patch that MODEL carries; may be given again.",
)
_FORCE = click.option(
    "--force", is_flag=True, help="Replace a copy of the model that exists, MODEL too."
)


@click.group(
    short_help="Show patches, put them on a model, take them off, export them.",
    epilog="""\b
Examples:
    pecker-fast patch info no_boots.safetensors
    pecker-fast patch apply MODEL no_boots.safetensors --out erased
    pecker-fast patch remove erased no_boots.safetensors --out restored
    pecker-fast patch export MODEL no_boots.safetensors --to peft-shira --out adapter
""",
)
def patch() -> None:
    """Show what an erased network differs from its base in, apply it to the base, remove it.

    A MODEL is a folder as diffusers saves it: a pipeline, of which the U-Net or transformer is
    taken, or a network alone.
    """


@patch.command(short_help="Show what patches hold.")
@click.argument("files", nargs=-1, required=True, type=INPUT)
@json_option
def info(files: tuple[Path, ...]) -> None:
    """Show what each of FILES holds, and how much it shares with those named before it."""
    from pecker_fast.patches.files import read_patch
    from pecker_fast.patches.patch import common_entries

    patches = [read_patch(file) for file in files]
    facts: list[dict[str, Any]] = [
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
            "in_common": {other.path: common_entries(one, other) for other in patches[:count]},
        }
        for count, (file, one) in enumerate(zip(files, patches, strict=True))
    ]

    def lines() -> Iterator[str]:
        for about, one in zip(facts, patches, strict=True):
            yield f"{one.path}"
            yield f"  {'entries':9} {one.nnz:,} of {one.numel:,} ({one.nnz / one.numel:.2%})"
            yield f"  {'size':9} {about['bytes']:,} bytes"
            yield f"  {'base':9} {one.base}"
            yield f"  {'result':9} {one.result}"
            yield f"  {'mask':9} {one.mask}"
            yield f"  {'made by':9} pecker_fast {one.package}"
            for key, value in one.about.items():
                yield f"  {printable(key, 60):9} {printable(value)}"
            for other, entries in about["in_common"].items():
                yield f"  {'in common':9} {entries:,} entries with {other}"

    result(lines(), lambda: facts)


@patch.command(short_help="Make an erased model of its base.")
@_FOLDER
@_FILE
@_OUT
@_APPLIED
@_FORCE
def apply(model: Path, file: Path, out: Path, applied: tuple[Path, ...], force: bool) -> None:
    """Write MODEL with the patch FILE applied to it into another folder."""
    from pecker_fast.patches.patch import apply_patch

    _change(model, file, out, applied, force, apply_patch)


@patch.command(short_help="Restore the base of an erased model.")
@_FOLDER
@_FILE
@_OUT
@_APPLIED
@_FORCE
def remove(model: Path, file: Path, out: Path, applied: tuple[Path, ...], force: bool) -> None:
    """Write MODEL without the patch FILE into another folder."""
    from pecker_fast.patches.patch import remove_patch

    _change(model, file, out, applied, force, remove_patch)


def _change(
    model: Path, file: Path, out: Path, applied: tuple[Path, ...], force: bool, how: Any
) -> None:
    from pecker_fast.patches.folders import change_weights

    def change(weights: dict[str, Tensor]) -> None:
        how(weights, file, applied=applied)

    check = change_weights(model, out, change, patch=file, applied=applied, force=force)
    echo(check.sentence())
    echo(out)


@patch.command(short_help="Write a patch in a format that others read.")
@_FOLDER
@_FILE
@click.option(
    "--to",
    type=click.Choice(["peft-shira", "vllm-sparse"]),
    required=True,
    help="An adapter for PEFT (a folder), or a safetensors file.",
)
@click.option("--out", type=PATH, required=True, help="The folder or file.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def export(model: Path, file: Path, to: str, out: Path, force: bool) -> None:
    """Write the patch FILE of MODEL, its base, in another format.

    vllm-sparse is exact, peft-shira but for rounding, which is said.
    """
    from pecker_fast.errors import PeckerError
    from pecker_fast.files import check_output_file
    from pecker_fast.patches.exports import export_patch
    from pecker_fast.patches.folders import read_weights

    base: Any = read_weights(model)
    if to == "peft-shira":
        base = _network(model, base)
    else:
        check_output_file(out, force)
        if out.resolve() == file.resolve():
            raise PeckerError(f"{out}: is what is to be read; choose another file")
    inexact = export_patch(file, base, to, out, force=force)
    echo(f"{out}: {f'{inexact:,} entries not exact' if inexact else 'exact'}")


def _network(model: Path, weights: dict[str, Tensor]) -> Any:
    """The network of a folder as a module, which knows which weights are of linear layers."""
    import diffusers
    import torch

    from pecker_fast.errors import PeckerError
    from pecker_fast.files import read_json, shown
    from pecker_fast.models.ddpm import DDPMUNet
    from pecker_fast.patches.folders import network_folder

    file = network_folder(model) / "config.json"
    config = read_json(file)
    name = config.get("_class_name") if isinstance(config, dict) else None
    kind: Any = DDPMUNet if name == "DDPMUNet" else getattr(diffusers, str(name), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.ModelMixin):
        raise PeckerError(f"{file}: {shown(name)} is no network of diffusers")
    try:
        with torch.device("meta"):
            network = cast("Any", kind).from_config(config)
        network.load_state_dict(weights, assign=True)
    except Exception as error:  # whatever the network's constructor raises
        raise PeckerError(f"{file}: makes no {name} with these weights ({error})") from error
    return network
