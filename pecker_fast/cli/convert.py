"""`pecker-fast convert`: a published checkpoint becomes a model folder."""

from __future__ import annotations

from pathlib import Path

import click

from pecker_fast.cli.common import INPUT, PATH, echo

__all__ = ["convert"]

# `published.SLOTS`, which only torch can import; a test holds the two together.
_SLOTS = ("ema", "model", "generator", "pseudo-score")


@click.command(
    short_help="Make a model folder of a published checkpoint.",
    epilog="""\b
Examples:
    pecker-fast convert ckpts/ckpt.pth --out cifar10
    pecker-fast convert sfd/ckpt-50000.pth --out psi --slot pseudo-score
""",
)
@click.argument("checkpoint", type=INPUT)
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@click.option(
    "--slot",
    type=click.Choice(_SLOTS),
    help="Which of the networks in the file.  [default: the EMA, else the network itself]",
)
@click.option(
    "--classes",
    help="cifar10, stl10, or names by label: 'ant,bee,cat'.  [default: as the sizes tell]",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Height and width of the images.  [default: so that attention is at 16x16]",
)
@click.option("--force", is_flag=True, help="Replace what is at --out.")
def convert(
    checkpoint: Path,
    out: Path,
    slot: str | None,
    classes: str | None,
    size: int | None,
    force: bool,
) -> None:
    """Make a model folder of a checkpoint of SA, SalUn, SFD or EraseDiff.

    CHECKPOINT is a file that their training wrote, for CIFAR-10, STL-10 or another size, or a
    safetensors file of the network's weights. No code in it is run; a file that cannot be read
    otherwise is refused.
    """
    from pecker_fast.models.conversion import convert_checkpoint

    _, lines = convert_checkpoint(checkpoint, out, slot, classes, size, force=force)
    for line in lines:
        echo(line)
    echo(f"wrote {out}")
