"""`pecker-fast convert`: a published checkpoint becomes a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pecker_fast.cli.common import output_folder
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.models.ddpm import DDPMUNet
    from pecker_fast.models.published import PublishedCheckpoint

__all__ = ["convert"]

# `published.SLOTS`, which only torch can import; a test holds the two together.
_SLOTS = ("ema", "model", "generator", "pseudo-score")

# What `ModelFolder.save` writes; a test holds the two together.
_FILES = (
    "pecker_fast.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)


@click.command(
    short_help="Make a model folder of a published checkpoint.",
    epilog="""\b
Examples:
    pecker-fast convert ckpts/ckpt.pth --out cifar10
    pecker-fast convert sfd/ckpt-50000.pth --out psi --slot pseudo-score
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
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
@click.option("--force", is_flag=True, help="Replace the model folder that is at --out.")
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
    output_folder(out, force, writes=_FILES, reads=[checkpoint])

    from pecker_fast.files import replacing_folder
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.published import T_INIT, published_scheduler, read_checkpoint

    read = read_checkpoint(checkpoint)
    chosen = read.choose(slot)
    network = read.network(chosen, sample_size=size)
    names = _class_names(classes, network)
    one_step = read.is_generator(chosen)
    origin = {"file": checkpoint.name, "slot": chosen, "step": read.step}
    folder = ModelFolder(
        unet=network,
        scheduler=published_scheduler(),
        class_names=names,
        figures={"converted_from": origin} | ({"t_init": T_INIT} if one_step else {}),
        kind="generator" if one_step else "teacher",
    )
    with replacing_folder(out) as partial:
        folder.save(partial)
    click.echo(_describe(read, chosen, network))
    click.echo(f"classes: {', '.join(names)}")
    click.echo(f"wrote {out}")


def _class_names(classes: str | None, network: DDPMUNet) -> tuple[str, ...]:
    """The names asked for, or those of the data set that has a network of these sizes."""
    from pecker_fast.models.published import CLASS_NAMES

    if classes is None:
        sizes = (network.config.sample_size, network.num_classes)
        known = {(32, 10): "cifar10", (64, 10): "stl10"}.get(sizes)
        if known is None:
            return tuple(f"class {index}" for index in range(network.num_classes))
        return CLASS_NAMES[known]
    names = CLASS_NAMES.get(classes.strip().lower()) or tuple(
        name.strip() for name in classes.split(",")
    )
    if len(names) != network.num_classes or len(set(names)) != len(names) or "" in names:
        raise PeckerError(
            f"--classes {classes}: the network has {network.num_classes} classes; give cifar10, "
            "stl10 or as many different names, separated by commas"
        )
    return names


def _describe(read: PublishedCheckpoint, chosen: str, network: DDPMUNet) -> str:
    """What was taken, and what it is good for."""
    config = network.config
    parameters = sum(param.numel() for param in network.parameters())
    after = "" if read.step is None else f", step {read.step:,}"
    image = f"{config.in_channels}x{config.sample_size}x{config.sample_size}"
    levels = ", ".join(map(str, config.channel_mult))
    lines = [
        f"{read.path}: took slot {chosen} of {', '.join(read.slots)}{after}",
        f"network: {parameters:,} parameters, {image} images, width {config.channels} x {levels}",
    ]
    if read.is_generator(chosen):
        lines.append("a one-step generator, which `pecker-fast sample` draws from as such")
    elif read.is_distilled:
        lines.append(
            "the pseudo-score network of a distilled generator: it knows the generator's images, "
            "and is not the teacher"
        )
    if network.null_label is None:
        lines.append("no null vector in it: it cannot be guided")
    return "\n".join(lines)
