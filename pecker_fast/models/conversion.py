"""A published checkpoint becomes a model folder."""

from __future__ import annotations

from pathlib import Path

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_folder
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.folder import FILES
from pecker_fast.models.published import (
    CLASS_NAMES,
    T_INIT,
    PublishedCheckpoint,
    published_scheduler,
    read_checkpoint,
)

__all__ = ["convert_checkpoint"]


def convert_checkpoint(
    checkpoint: Path,
    out: Path,
    slot: str | None = None,
    classes: str | None = None,
    size: int | None = None,
    *,
    force: bool = False,
) -> tuple[ModelFolder, list[str]]:
    """Make a model folder of a checkpoint of SA, SalUn, SFD or EraseDiff.

    Args:
        checkpoint: a file that their training wrote, or a safetensors file of the weights. No code
            in it is run.
        out: the folder to write, whole or not at all.
        slot: which of the networks in the file: ema, model, generator or pseudo-score. None: the
            average, else the network itself.
        classes: cifar10, stl10, or names by label: "ant,bee,cat". None: as the sizes tell.
        size: height and width of the images. None: so that attention is at 16x16.
        force: replace the model folder that is at `out`.

    Returns:
        The model as it was written, and lines on what was taken and what it is good for.

    Raises:
        PeckerError: `out` exists, holds other things or has no folder to lie in, a file that cannot
            be read, a slot that it does not have, or as many class names as the network does not
            know.
    """
    check_output_folder(out, force, writes=FILES, reads=[checkpoint])
    read = read_checkpoint(checkpoint)
    chosen = read.choose(slot)
    network = read.network(chosen, sample_size=size)
    one_step = read.is_generator(chosen)
    origin = {"file": checkpoint.name, "slot": chosen, "step": read.step}
    model = ModelFolder(
        network=network,
        scheduler=published_scheduler(),
        class_names=_class_names(classes, network),
        figures={"converted_from": origin} | ({"t_init": T_INIT} if one_step else {}),
        kind="generator" if one_step else "teacher",
    )
    model.save(out)
    named = f"classes: {', '.join(model.class_names)}"
    return model, [*_describe(read, chosen, network), named]


def _class_names(classes: str | None, network: DDPMUNet) -> tuple[str, ...]:
    """The names asked for, or those of the data set that has a network of these sizes."""
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


def _describe(read: PublishedCheckpoint, chosen: str, network: DDPMUNet) -> list[str]:
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
    return lines
