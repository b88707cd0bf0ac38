"""`pecker-fast patch`: look at patches, put them on models, take them off, export them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pecker_fast.cli import shared
from pecker_fast.cli.common import echo, result
from pecker_fast.cli.shared import INPUT, PATH, flag, option, together
from pecker_fast.errors import PeckerError, printable
from pecker_fast.files import check_output_file, read_json, shown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["patch"]

_model_and_file = together(
    click.argument("model", type=INPUT),
    click.argument("file", type=INPUT),
    option("--out", "Where the result goes: a folder, of vllm-sparse a file.", PATH, required=True),
    flag("--force", "Replace a copy of the model that exists, MODEL too."),
)
_applied = option(
    "--applied", "Another patch that MODEL carries; may be given again.", INPUT, multiple=True
)


@click.group(
    short_help="Show patches, apply, remove and export them.",
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


@patch.command()
@click.argument("files", nargs=-1, required=True, type=INPUT)
@shared.json
def info(files: tuple[Path, ...]) -> None:
    """Show what patches hold, and how much each shares with those named before it."""
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
    result([line for one in facts for line in _lines(one)], lambda: facts)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield facts["file"]
    share = facts["entries"] / facts["of"]
    yield f"  {'entries':9} {facts['entries']:,} of {facts['of']:,} ({share:.2%})"
    yield f"  {'size':9} {facts['bytes']:,} bytes"
    for name in ("base", "result", "mask"):
        yield f"  {name:9} {facts[name]}"
    yield f"  {'made by':9} pecker_fast {facts['package']}"
    for key, value in facts["about"].items():
        yield f"  {printable(key, 60):9} {printable(value)}"
    for other, entries in facts["in_common"].items():
        yield f"  {'in common':9} {entries:,} entries with {other}"


@patch.command()
@_model_and_file
@_applied
def apply(**options: Any) -> None:
    """Write the model with a patch applied to it into another folder."""
    from pecker_fast.patches.patch import apply_patch

    _change(apply_patch, **options)


@patch.command()
@_model_and_file
@_applied
def remove(**options: Any) -> None:
    """Write the model without the patch that it carries into another folder."""
    from pecker_fast.patches.patch import remove_patch

    _change(remove_patch, **options)


def _change(
    how: Any, model: Path, file: Path, out: Path, applied: tuple[Path, ...], force: bool
) -> None:
    from pecker_fast.patches.folders import change_weights

    def change(weights: dict[str, Tensor]) -> None:
        how(weights, file, applied=applied)

    check = change_weights(model, out, change, patch=file, applied=applied, force=force)
    echo(check.sentence())
    echo(out)


@patch.command()
@_model_and_file
@option(
    "--to", "An adapter for PEFT (a folder), or a safetensors file.", ["peft-shira", "vllm-sparse"],
    required=True,
)  # fmt: skip
def export(model: Path, file: Path, to: str, out: Path, force: bool) -> None:
    """Write a patch of the model, its base, in a format that others read.

    vllm-sparse is exact, peft-shira but for rounding, which is said.
    """
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
