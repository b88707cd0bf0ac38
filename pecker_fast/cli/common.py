"""What commands say and in which form, settings from options, devices and threads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.shared import AS_JSON
from pecker_fast.cli.torchrun import is_first
from pecker_fast.errors import PeckerError, printable
from pecker_fast.files import shown
from pecker_fast.progress import note
from pecker_fast.runs.interrupts import saving_at_interrupt

if TYPE_CHECKING:
    import torch

    from pecker_fast.distributed import Ranks
    from pecker_fast.runs.settings import Settings

__all__ = ["config_values", "echo", "judges", "prepare", "result", "say_config", "train"]

_LONGEST_LINE = 2000
"""Characters of a line of output."""


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line, made safe to show: names, prompts and paths in it may come from strangers."""
    click.echo(printable(text, _LONGEST_LINE), err=err)


def result(lines: Iterable[object], content: Callable[[], Any]) -> None:
    """Say what came of a command: lines to read, or JSON.

    Args:
        lines: for stdout.
        content: the same in plain types and paths.
    """
    if not is_first():
        return  # one process speaks for all
    if click.get_current_context().meta.get(AS_JSON):
        click.echo(json.dumps(content(), indent=2, ensure_ascii=False, default=str))
        return
    for line in lines:
        echo(line)


def say_config(config: Settings) -> None:
    """Print a configuration."""
    click.echo(config.to_yaml(), nl=False)


def judges(given: tuple[Path, ...]) -> dict[str, Any]:
    """What `--classifier` names, once or twice, by the arguments of Python.

    Raises:
        PeckerError: three and more.
    """
    if len(given) > 2:
        raise PeckerError(f"--classifier: at most two judges, got {len(given)}; leave some out")
    return dict(zip(("classifier", "second_classifier"), given, strict=False))


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
        PeckerError: a --set without an equals sign, or with a value that is not YAML.
    """
    from pecker_fast.runs.reading import parse_yaml

    values: dict[str, Any] = {}
    for setting in options.pop("settings"):
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise PeckerError(
                f"--set {shown(setting)}: expected KEY=VALUE, e.g. --set generator.lr=1e-4"
            )
        values[key.strip()] = parse_yaml(text, f"--set {shown(key)}")
    named = {key: options.pop(option, None) for option, key in _KEYS.items()}
    return values | {key: value for key, value in named.items() if value is not None}


def train(trainer: Any, lines: Iterable[str], ranks: Ranks) -> None:
    """Go through a run to its end; says first where it is taken up, and these lines."""
    for line in lines:
        note(line)
    if trainer.iteration:
        note(f"resuming at iteration {trainer.iteration:,} of {trainer.config.iterations:,}")
    for _ in saving_at_interrupt(trainer.run(), lambda: trainer.iteration, trainer.save, ranks):
        pass


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
        note("loading torch and the model ...")  # seconds, more on a slow disk

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
