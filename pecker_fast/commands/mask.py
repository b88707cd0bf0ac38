"""`pecker-fast mask`: find the salient parameters of a model for a class to forget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pecker_fast.commands.common import (
    MODEL_ARGUMENT,
    config_overrides,
    machine_options,
    output_file,
    prepare,
    training_options,
)
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.mask import ParameterStats

__all__ = ["mask"]


@click.command(
    short_help="Find the parameters that matter for a class.",
    epilog="""\b
Examples:
    pecker-fast mask MODEL --forget "Ankle boot" --override Sneaker --density 0.1
    pecker-fast mask MODEL --forget 3 --override 5 --set saliency.loss=denoise --out m.safetensors
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run
""",
)
@MODEL_ARGUMENT
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mask.safetensors"),
    show_default=True,
    help="Mask file; a PNG with the density per layer is written beside it.",
)
@click.option("--config", "config_path", help="YAML file or name of a shipped recipe.")
@training_options
@click.option("--force", is_flag=True, help="Replace files that exist.")
@machine_options
def mask(
    model: Path,
    out: Path,
    config_path: str | None,
    forget: str | None,
    override: str | None,
    density: float | None,
    kind: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Find which parameters of the model folder MODEL matter for forgetting a class."""
    plot = out.with_suffix(".png")
    for path in (out, plot):
        output_file(path, force)
    if config_path is None and (forget is None or override is None):
        raise PeckerError("mask: give --forget and --override, or a --config that has them")
    overrides = config_overrides(forget, override, density, kind, seed, settings)

    from pecker_fast.distill.config import load_config
    from pecker_fast.distill.mask_finding import find_mask
    from pecker_fast.distill.objective import Objective
    from pecker_fast.models import ModelFolder

    config = load_config(config_path, overrides)
    place = prepare(device, threads)
    folder = ModelFolder.load(model)
    folder.unet.to(place)
    objective = Objective.from_model(folder, config)
    found = find_mask(objective, progress=True)
    found.save(out)
    found.plot(plot)
    click.echo(
        f"{found.nnz:,} of {found.numel:,} parameters are salient for "
        f"{folder.class_names[objective.conditions.forget]!r} "
        f"(density {found.density:.4g}, {config.mask.kind})"
    )
    for line in density_table(found.stats()):
        click.echo(line)
    click.echo(out)
    click.echo(plot)


def density_table(stats: Iterable[ParameterStats]) -> list[str]:
    """Lines with entries, salient entries and density of each block of the network."""
    blocks: dict[str, tuple[int, int]] = {}
    for row in stats:
        parts = row.name.split(".")
        # Blocks are numbered lists: 'down_blocks.0'. Everything else goes by its first name.
        numbered = len(parts) > 2 and parts[1].isdecimal()
        block = ".".join(parts[:2]) if numbered else parts[0]
        numel, nnz = blocks.get(block, (0, 0))
        blocks[block] = (numel + row.numel, nnz + row.nnz)
    width = max(len(block) for block in blocks)
    lines = [f"{'block':{width}} {'parameters':>12} {'salient':>12} {'density':>8}"]
    for block, (numel, nnz) in blocks.items():
        lines.append(f"{block:{width}} {numel:>12,} {nnz:>12,} {nnz / numel:>8.4f}")
    return lines
