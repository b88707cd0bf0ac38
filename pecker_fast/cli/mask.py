"""`pecker-fast mask`: find the salient parameters of a model for a class to forget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.common import (
    PATH,
    SOURCE_ARGUMENT,
    config_values,
    data_options,
    hub_options,
    machine_options,
    prepare,
    training_options,
)
from pecker_fast.cli.output import (
    json_option,
    print_config_option,
    quiet_option,
    result,
    say_config,
)
from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_file

if TYPE_CHECKING:
    from pecker_fast.masks.mask import ParameterStats

__all__ = ["mask"]


@click.command(
    short_help="Find the parameters that matter for a class.",
    epilog="""\b
Examples:
    pecker-fast mask MODEL --forget "Ankle boot" --override Sneaker --density 0.1
    pecker-fast mask MODEL --forget 3 --override 5 --set saliency.kind=denoise --out m.safetensors
    pecker-fast mask MODEL --config cifar10_salun --forget 3 --data-root DATA
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run
""",
)
@SOURCE_ARGUMENT
@hub_options
@click.option(
    "--out",
    type=PATH,
    default=Path("mask.safetensors"),
    show_default=True,
    help="Mask file; a PNG with the density per layer is written beside it.",
)
@click.option("--config", help="YAML file or name of a shipped recipe.")
@training_options
@data_options
@click.option("--force", is_flag=True, help="Replace files that exist.")
@machine_options
@print_config_option
@json_option
@quiet_option
def mask(out: Path, force: bool, device: str, threads: int | None, **options: Any) -> None:
    """Find which parameters of the model folder MODEL matter for forgetting a class."""
    from pecker_fast.erasure.request import Request

    if out.suffix.lower() == ".png":
        name = out.with_suffix(".safetensors").name
        raise PeckerError(f"--out {out}: is what the picture of the mask is called; name it {name}")
    check_output_file(out, force)
    check_output_file(out.with_suffix(".png"), force)
    values, printing = config_values(options), options.pop("print_config")
    request = Request(out=out, settings=values, device=device, command="mask", **options)
    if printing:
        say_config(request.read_config())
        return
    request.check()
    prepare(device, threads)

    from pecker_fast.erasure.masks import mask_of_class

    found = mask_of_class(request)
    plot = found.save(out)
    counts = (
        f"{found.mask.nnz:,} of {found.mask.numel:,} parameters are salient for "
        f"{found.forget!r} (density {found.mask.density:.4g}, {found.kind})"
    )
    made_of = f"digest {found.mask.digest[:16]}, of the model {found.model[:16]}"
    content = {
        "forget": found.forget, "kind": found.kind, "salient": found.mask.nnz,
        "parameters": found.mask.numel, "density": found.mask.density,
        "digest": found.mask.digest, "model": found.model, "mask": out, "picture": plot,
    }  # fmt: skip
    lines = [counts, *density_table(found.mask.stats()), found.note, made_of, out, plot]
    result(lines, lambda: content)


def density_table(stats: Iterable[ParameterStats]) -> list[str]:
    """Lines with entries, salient entries and density of each block of the network."""
    from pecker_fast.masks.stats import block_of

    blocks: dict[str, tuple[int, int]] = {}
    for row in stats:
        block = block_of(row.name)
        numel, nnz = blocks.get(block, (0, 0))
        blocks[block] = (numel + row.numel, nnz + row.nnz)
    width = max(len(block) for block in blocks)
    lines = [f"{'block':{width}} {'parameters':>12} {'salient':>12} {'density':>8}"]
    for block, (numel, nnz) in blocks.items():
        lines.append(f"{block:{width}} {numel:>12,} {nnz:>12,} {nnz / numel:>8.4f}")
    return lines
