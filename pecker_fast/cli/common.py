"""What several commands share: options, where output may go, devices, threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pecker_fast.evaluate.classifier import Classifier
    from pecker_fast.evaluate.frechet import ClassStatistics
    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.models import ModelFolder

__all__ = [
    "MODEL_ARGUMENT",
    "check_data_free",
    "config_overrides",
    "load_mask",
    "load_statistics",
    "machine_options",
    "output_file",
    "output_folder",
    "prepare",
    "training_options",
]

F = TypeVar("F", bound=Callable[..., Any])

MODEL_ARGUMENT = click.argument("model", type=click.Path(path_type=Path))


def machine_options(function: F) -> F:
    """Add --device and --threads."""
    function = click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]"
    )(function)
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(function)


def training_options(function: F, *, many_overrides: bool = False) -> F:
    """Add the options that lay values over a configuration; None where they are not given.

    With `many_overrides`, --override may be given again, and arrives as the tuple `overrides`.
    """
    for option in reversed(
        (
            click.option("--forget", help="Class to erase: name or index."),
            click.option(
                "--override",
                "overrides" if many_overrides else "override",
                multiple=many_overrides,
                help="Class in its place: name, index, or 'random'.",
            ),
            click.option("--density", type=float, help="Share of the parameters that may change."),
            click.option(
                "--mask",
                "kind",
                type=click.Choice(["saliency", "random", "full"]),
                help="Which of them: the most salient, random ones, or all.",
            ),
            click.option("--seed", type=int, help="Seed of everything random."),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="Any other setting, e.g. --set generator.lr=1e-4. May be given again.",
            ),
        )
    ):
        function = option(function)
    return function


def config_overrides(
    forget: str | None,
    override: str | None,
    density: float | None,
    kind: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    iterations: int | None = None,
) -> dict[str, Any]:
    """The options of `training_options` as dotted keys for `load_config`.

    Raises:
        PeckerError: a density outside (0, 1], a --set without an equals sign, or with a value that
            is not YAML.
    """
    import yaml

    if density is not None and not 0 < density <= 1:
        raise PeckerError(
            f"--density {density:g}: must be above 0 and at most 1, the share of the parameters "
            "that may change; 0.1 is a good start"
        )

    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise PeckerError(f"--set {setting}: expected KEY=VALUE, e.g. --set generator.lr=1e-4")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PeckerError(f"--set {setting}: the value is not valid YAML") from error
    named = {
        "forget": forget,
        "override": override,
        "mask.density": density,
        "mask.kind": kind,
        "seed": seed,
        "iterations": iterations,
    }
    return values | {key: value for key, value in named.items() if value is not None}


def prepare(device: str, threads: int | None) -> torch.device:
    """Set the number of threads and resolve the device.

    Raises:
        PeckerError: no such device on this machine.
    """
    if "torch" not in sys.modules and sys.stderr.isatty():
        click.echo("loading ...", err=True)  # a few seconds on a slow disk

    import torch

    from pecker_fast.machine import usable_cores

    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        # torch counts the machine's cores; a container may be allowed fewer.
        torch.set_num_threads(usable_cores())
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: a card for each process
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise PeckerError(
            f"--device {device}: unknown device; give auto, cpu, cuda or cuda:N"
        ) from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise PeckerError(
            f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices here; "
            "use --device cpu"
        )
    if resolved.type not in ("cpu", "cuda"):
        raise PeckerError(f"--device {device}: only cpu and cuda are supported")
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    return resolved


def output_file(path: Path, force: bool) -> Path:
    """Check before any work is done that `path` can become a file.

    Raises:
        PeckerError: it exists (without --force), is a folder, or its folder is missing or cannot
            be written to.
    """
    if path.is_dir():
        raise PeckerError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not force:
        raise PeckerError(f"{path}: exists; add --force to replace it")
    if not path.parent.is_dir():
        raise PeckerError(f"{path.parent}: no such folder; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PeckerError(f"{path.parent}: cannot be written to; choose another folder")
    return path


def output_folder(
    path: Path, force: bool, *, writes: Collection[str], reads: Sequence[Path]
) -> None:
    """Check before any work is done that `path` can become a folder, or replace one.

    Args:
        path: the folder.
        force: whether one that is there may be deleted: only if it holds nothing but files that
            the command writes.
        writes: these files, relative to the folder.
        reads: files and folders that the command reads, which must outlive it.

    Raises:
        PeckerError: it exists (without `force`), holds other files or what is read, is a file or a
            link, or its parent is missing.
    """
    if path.is_symlink():
        raise PeckerError(f"{path}: is a link; name the folder itself")
    if path.exists() and not path.is_dir():
        raise PeckerError(f"{path}: is a file; give the name of a folder")
    if path.exists() and not force:
        raise PeckerError(f"{path}: exists; add --force to replace it")
    if not path.absolute().parent.is_dir():
        raise PeckerError(f"{path.absolute().parent}: no such folder; make it first")
    for read in reads:
        if path.resolve() in read.resolve().parents:
            raise PeckerError(
                f"{read}: lies in {path}, which --force deletes; choose another --out"
            )
    for found in sorted(path.rglob("*")):
        name = found.relative_to(path).as_posix()
        if name not in writes and (found.is_symlink() or not found.is_dir()):
            raise PeckerError(
                f"{path}: holds {name!r}, which this command does not write; --force replaces only "
                "what it wrote: choose another --out, or delete the folder yourself"
            )


def check_data_free(command: str, dataset: str | None, root: Path | None, download: bool) -> None:
    """Refuse the options of `data_options` where no real image is needed.

    Raises:
        PeckerError: one of them is given.
    """
    options = {"--dataset": dataset, "--data-root": root, "--download": download or None}
    if given := [name for name, value in options.items() if value is not None]:
        raise PeckerError(
            f"{command}: {given[0]} is for methods that are trained on real images, such as "
            "--config cifar10_salun; this one needs none: leave it out"
        )


def load_mask(path: Path | None, network: nn.Module) -> SaliencyMask | None:
    """Read --mask-file: what `pecker-fast mask` wrote, or SalUn's file of 0/1 tensors.

    Args:
        path: None gives None.
        network: what the mask is for; names and shapes must be its own.

    Raises:
        PeckerError: missing, truncated, no mask, or of another network.
    """
    if path is None:
        return None
    from pecker_fast.masks.files import saved_by_torch
    from pecker_fast.masks.mask import SaliencyMask

    if saved_by_torch(path):
        return SaliencyMask.from_dense(path, network)
    return SaliencyMask.load(path, network)


def load_statistics(path: Path, model: ModelFolder, classifier: Classifier) -> ClassStatistics:
    """Read per-class feature statistics, or compute them from real images.

    Args:
        path: a file of `ClassStatistics.save`, or an .npz with `images` (N, C, H, W), uint8 or
            floats in [-1, 1], and `labels` (N,).
        model: for its classes and the size of its images.
        classifier: gives the features of the real images.

    Raises:
        PeckerError: missing, truncated, or of other classes or sizes.
    """
    import numpy as np
    import torch

    from pecker_fast.evaluate.forgetting import classify
    from pecker_fast.evaluate.frechet import ClassStatistics

    if path.suffix != ".npz":
        return ClassStatistics.load(path)
    try:
        with np.load(path) as file:
            pixels, numbers = file["images"], file["labels"]
    except FileNotFoundError as error:
        raise PeckerError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise PeckerError(
            f"{path}: cannot be read ({error}); expected an .npz with arrays images and labels"
        ) from error
    images = torch.from_numpy(pixels).float()
    if pixels.dtype == np.uint8:
        images = images / 127.5 - 1.0
    if images.shape[1:] != model.image_shape or numbers.shape != images.shape[:1]:
        raise PeckerError(
            f"{path}: expected images (N, {', '.join(map(str, model.image_shape))}) and N labels, "
            f"got {tuple(images.shape)} and {tuple(numbers.shape)}"
        )
    _, features = classify(classifier, images, progress="real images")
    labels = torch.from_numpy(numbers.astype(np.int64))
    return ClassStatistics.from_features(features, labels, model.num_classes, source=path.name)
