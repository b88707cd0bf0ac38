"""What several commands share: options, where output may go, devices, threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    import torch

__all__ = [
    "INPUT",
    "MODEL_ARGUMENT",
    "config_values",
    "machine_options",
    "output_file",
    "prepare",
    "seed_option",
    "settings_option",
    "training_options",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Input(click.Path):
    """A path that is there, or a refusal before anything heavy is loaded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path.

        Raises:
            PeckerError: Nothing is there.
        """
        if not os.path.exists(value):
            option = f"{param.opts[0]} " if isinstance(param, click.Option) else ""
            raise PeckerError(f"{option}{value}: no such file or folder; check the path")
        return Path(value)


INPUT = _Input()

MODEL_ARGUMENT = click.argument("model", type=INPUT)


def machine_options(function: F) -> F:
    """Add --device and --threads."""
    function = click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]"
    )(function)
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(function)


def training_options(function: F) -> F:
    """Add the options that lay values over a configuration; None or () where not given.

    --override may be given again, and arrives as the tuple `overrides`.
    """
    for option in reversed(
        (
            click.option("--forget", help="Class to erase: name or index."),
            click.option(
                "--override",
                "overrides",
                multiple=True,
                help="Class in its place: name, index, or 'random'.",
            ),
            click.option("--density", type=float, help="Share of the parameters that may change."),
            click.option(
                "--mask",
                "kind",
                type=click.Choice(["saliency", "random", "full"]),
                help="Which of them: the most salient, random ones, or all.",
            ),
            seed_option,
            settings_option("generator.lr=1e-4"),
        )
    ):
        function = option(function)
    return function


def seed_option(function: F) -> F:
    """Add --seed."""
    return click.option("--seed", type=int, help="Seed of everything random.")(function)


def settings_option(example: str) -> Callable[[F], F]:
    """Adds --set, whose help shows this example."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help=f"Any other setting, e.g. --set {example}. May be given again.",
    )


_KEYS = {
    "density": "mask.density",
    "kind": "mask.kind",
    "seed": "seed",
    "iterations": "iterations",
    "epochs": "epochs",
    "without": "without",
}
"""Options that have a key of the configuration each, all that a command may have."""


def config_values(options: dict[str, Any]) -> dict[str, Any]:
    """The options that lay values over a configuration, taken out of `options`, as dotted keys.

    Raises:
        PeckerError: a density outside (0, 1], a --set without an equals sign, or with a value that
            is not YAML.
    """
    import yaml

    density = options.get("density")
    if density is not None and not 0 < density <= 1:
        raise PeckerError(
            f"--density {density:g}: must be above 0 and at most 1, the share of the parameters "
            "that may change; 0.1 is a good start"
        )
    values: dict[str, Any] = {}
    for setting in options.pop("settings"):
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise PeckerError(f"--set {setting}: expected KEY=VALUE, e.g. --set generator.lr=1e-4")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PeckerError(f"--set {setting}: the value is not valid YAML") from error
    named = {key: options.pop(option, None) for option, key in _KEYS.items()}
    return values | {key: value for key, value in named.items() if value is not None}


def prepare(device: str, threads: int | None, *, models: bool = True) -> torch.device:
    """Load torch, set the number of threads and resolve the device.

    Args:
        device: As `usable_device` takes it.
        threads: None = the cores that may be used.
        models: Networks are loaded afterwards.

    Raises:
        PeckerError: no such device on this machine.
    """
    if "torch" not in sys.modules:
        click.echo("loading torch and the model ...", err=True)  # seconds, more on a slow disk

    import torch

    from pecker_fast.cli.quick_start import load_class_networks
    from pecker_fast.machine import usable_cores, usable_device

    if models:
        load_class_networks()

    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        # torch counts the machine's cores; a container may be allowed fewer.
        torch.set_num_threads(usable_cores())
    return usable_device(device)


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
