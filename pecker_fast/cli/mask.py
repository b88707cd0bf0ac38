"""`pecker-fast mask`: find the salient parameters of a model for a class to forget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pecker_fast.cli.common import (
    MODEL_ARGUMENT,
    check_data_free,
    config_overrides,
    machine_options,
    output_file,
    prepare,
    training_options,
)
from pecker_fast.cli.data_options import data_options
from pecker_fast.cli.run_models import load_original
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from pecker_fast.distill.config import PeckerConfig
    from pecker_fast.distill.objective import Objective
    from pecker_fast.masks.mask import ParameterStats, SaliencyMask
    from pecker_fast.nn.flops import NetworkFlops

__all__ = ["mask"]


@click.command(
    short_help="Find the parameters that matter for a class.",
    epilog="""\b
Examples:
    pecker-fast mask MODEL --forget "Ankle boot" --override Sneaker --density 0.1
    pecker-fast mask MODEL --forget 3 --override 5 --set saliency.loss=denoise --out m.safetensors
    pecker-fast mask MODEL --config cifar10_salun --forget 3 --data-root DATA
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
@data_options
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
    dataset: str | None,
    data_root: Path | None,
    download: bool,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Find which parameters of the model folder MODEL matter for forgetting a class."""
    plot = out.with_suffix(".png")
    for path in (out, plot):
        output_file(path, force)
    overrides = config_overrides(forget, override, density, kind, seed, settings)
    named = config_path is not None or "method" in overrides
    if not named and (forget is None or override is None):
        raise PeckerError("mask: give --forget and --override, or a --config that has them")

    from pecker_fast.methods.config import names_a_baseline

    if names_a_baseline(config_path, overrides):
        found = _of_baseline(
            model, config_path, overrides, (dataset, data_root, download), device, threads
        )
    else:
        check_data_free("mask", dataset, data_root, download)
        found = _of_distillation(model, config_path, overrides, device, threads)
    found.mask.save(out)
    found.mask.plot(plot)
    click.echo(
        f"{found.mask.nnz:,} of {found.mask.numel:,} parameters are salient for "
        f"{found.forget!r} (density {found.mask.density:.4g}, {found.kind})"
    )
    for line in density_table(found.mask.stats()):
        click.echo(line)
    click.echo(found.note)
    click.echo(out)
    click.echo(plot)


class _Found(NamedTuple):
    """A mask, and what is said of it."""

    mask: SaliencyMask
    forget: str  # name of the class
    kind: str
    note: str


def _of_distillation(
    model: Path,
    config_path: str | None,
    overrides: dict[str, Any],
    device: str,
    threads: int | None,
) -> _Found:
    """From the generator's own images."""
    from pecker_fast.distill.config import load_config
    from pecker_fast.distill.mask_finding import find_mask
    from pecker_fast.distill.objective import Objective

    config = load_config(config_path, overrides)
    if config.forget is None:
        raise PeckerError("mask: the configuration forgets no class; give --forget")
    place = prepare(device, threads)
    folder = load_original(model)
    folder.unet.to(place)
    objective = Objective.from_model(folder, config)
    found = find_mask(objective, progress=True)
    name = folder.class_names[folder.class_index(config.forget)]
    return _Found(found, name, config.mask.kind, backward_line(objective, found))


def _of_baseline(
    model: Path,
    config_path: str | None,
    overrides: dict[str, Any],
    data: tuple[str | None, Path | None, bool],
    device: str,
    threads: int | None,
) -> _Found:
    """From real images, as SalUn finds it."""
    from pecker_fast.cli.erasing_baseline import baseline_images, baseline_mask
    from pecker_fast.methods.config import load_baseline_config

    config = load_baseline_config(config_path, overrides)
    place = prepare(device, threads)
    folder = load_original(model)
    config, images = baseline_images(config, *data)
    found = baseline_mask(folder, images, config, place)
    name = folder.class_names[folder.class_index(config.forget)]
    return _Found(found, name, config.mask.kind, f"found on {name} in {images.source}")


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


def backward_line(objective: Objective, mask: SaliencyMask) -> str:
    """A line with the FLOPs that the mask saves, or with the reason why they cannot be counted."""
    import torch
    from torch import Tensor, nn

    from pecker_fast.distill.networks import predict_noise
    from pecker_fast.nn.flops import count_flops

    zero = torch.zeros(1, dtype=torch.int64, device="meta")

    def forward(network: nn.Module, image: Tensor) -> Tensor:
        return predict_noise(network, image, zero, zero)

    try:
        flops = count_flops(objective.teacher, mask, forward, objective.sample_shape)
    except PeckerError as error:
        return f"backward of the generator: {error}"
    return describe_backward(flops, mask, objective.config)


def describe_backward(flops: NetworkFlops, mask: SaliencyMask, config: PeckerConfig) -> str:
    """How much of a backward pass is skipped, which part of it, and its share of an iteration."""
    full, masked = flops.full, flops.masked
    unit, size = ("GFLOP", 1e9) if full.total >= 1e9 else ("MFLOP", 1e6)
    line = (
        f"backward of the generator: {masked.total / size:,.1f} of {full.total / size:,.1f} {unit} "
        "an image"
    )
    if masked.total == full.total:
        line += f": this mask ({mask.granularity}, density {mask.density:.4g}) skips no arithmetic"
        structured = mask.granularity in ("out_channel", "tensor") or mask.density == 1
        return line if structured else f"{line}; mask.granularity out_channel or tensor can"
    weights = (full.weight_gradients - masked.weight_gradients) / full.total
    below = (full.input_gradients - masked.input_gradients) / full.total

    def iteration(masked_networks: int) -> int:
        return flops.iteration(
            masked_networks,
            shared_sample=config.share_generator_pass,
            diff_instruct=config.diff_instruct,
        )

    learning = 2 if config.mask.apply == "both" else 1
    return (
        f"{line} ({flops.skipped:.1%} skipped: weight gradients {weights:.1%}, layers below the "
        f"earliest salient one {below:.1%}); of an iteration: "
        f"{1 - iteration(learning) / iteration(0):.1%}"
    )
