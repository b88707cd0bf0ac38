"""`pecker-fast convert`: a published checkpoint becomes a model folder, a pipeline one file."""

from __future__ import annotations

from pathlib import Path

import click

from pecker_fast.cli.common import INPUT, PATH, echo
from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import find_pipeline

__all__ = ["convert"]

# `published.SLOTS`, which only torch can import; a test holds the two together.
_SLOTS = ("ema", "model", "generator", "pseudo-score")


@click.command(
    short_help="Make a model folder of a published checkpoint.",
    epilog="""\b
Examples:
    pecker-fast convert ckpts/ckpt.pth --out cifar10
    pecker-fast convert sfd/ckpt-50000.pth --out psi --slot pseudo-score
    pecker-fast convert batch512_cfg4.54.54.5_t625_8380_v2.pkl --like SD15 --out one-step
    pecker-fast convert run/pipeline --out erased.safetensors
""",
)
@click.argument("checkpoint", type=INPUT)
@click.option("--out", type=PATH, required=True, help="Folder to write; of a pipeline the file.")
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
@click.option(
    "--like",
    type=INPUT,
    help="The pipeline that CHECKPOINT, a one-step generator of SiD-LSG, was distilled from.",
)
@click.option("--force", is_flag=True, help="Replace what is at --out.")
def convert(
    checkpoint: Path,
    out: Path,
    slot: str | None,
    classes: str | None,
    size: int | None,
    like: Path | None,
    force: bool,
) -> None:
    """Make a model folder of a checkpoint of SA, SalUn, SFD or EraseDiff, a U-Net of SiD-LSG's.

    CHECKPOINT is a file that their training wrote, for CIFAR-10, STL-10 or another size, or a
    safetensors file of the network's weights; with --like a pickled one-step generator. No code in
    it is run; a file that cannot be read otherwise is refused.

    The folder of a pipeline of Stable Diffusion 1.x, 2.x or XL becomes one file in the original
    layout, for other programs.
    """
    from pecker_fast.models.conversion import convert_checkpoint, convert_generator

    pipeline = find_pipeline(checkpoint) if checkpoint.is_dir() else None
    if pipeline is not None:
        from pecker_fast.models.single_file import save_single_file

        if (slot, classes, size, like) != (None, None, None, None):
            raise PeckerError(
                "convert: a pipeline becomes one file as it is; leave out --slot, --classes, "
                "--size and --like"
            )
        lines = save_single_file(pipeline, out, force=force)
    elif like is None:
        _, lines = convert_checkpoint(checkpoint, out, slot, classes, size, force=force)
    elif (slot, classes, size) != (None, None, None):
        raise PeckerError("convert: --slot, --classes and --size are for class models, not --like")
    else:
        lines = convert_generator(checkpoint, like, out, force=force)
    for line in lines:
        echo(line)
    echo(f"wrote {out}")
