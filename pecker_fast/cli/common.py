"""What several commands share: options, where output may go, devices, threads."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pecker_fast.datasets import DATASETS
from pecker_fast.errors import PeckerError, printable
from pecker_fast.files import shown
from pecker_fast.progress import note
from pecker_fast.runs.finding import is_hub_id
from pecker_fast.runs.interrupts import saving_at_interrupt

if TYPE_CHECKING:
    import torch

    from pecker_fast.distributed import Ranks

__all__ = [
    "INPUT",
    "MODEL_ARGUMENT",
    "PATH",
    "SOURCE",
    "SOURCE_ARGUMENT",
    "config_values",
    "data_options",
    "echo",
    "hub_options",
    "judges",
    "machine_options",
    "prepare",
    "run_options",
    "sampler_options",
    "seed_option",
    "settings_option",
    "train",
    "training_options",
]

F = TypeVar("F", bound=Callable[..., Any])

_MOST_THREADS = 4096
_LONGEST_LINE = 2000
"""Characters of a line of output."""


class _Path(click.Path):
    """A path, as a `Path`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path.

        Raises:
            PeckerError: it is empty, as an unset variable of the shell is: `Path` takes that for
                the current folder. Or its bytes are no text, which safetensors cannot open; or it
                is a link that leads to itself.
        """
        name, text = "path" if param is None else param.opts[0], os.fspath(value)
        if not text:
            raise PeckerError(f"{name}: is empty; give a path, . for the current folder")
        if text.encode(errors="replace").decode() != text:
            raise PeckerError(f"{name}: {text} is no UTF-8; rename it")
        try:
            os.stat(text)
        except OSError as error:
            if error.errno == errno.ELOOP:  # pathlib would say so in another way at each place
                raise PeckerError(f"{name}: {text} is a link that leads to itself") from None
        return Path(text)


class _Input(_Path):
    """A path that is there, or a refusal before anything heavy is loaded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path.

        Raises:
            PeckerError: Nothing is there, or as above.
        """
        path = super().convert(value, param, ctx)
        if not os.path.exists(path):
            option = f"{param.opts[0]} " if isinstance(param, click.Option) else ""
            raise PeckerError(f"{option}{path}: no such file or folder; check the path")
        return path


class _Source(_Input):
    """A model that is there, or the id of one on the hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, or the id as one; see `_Input`."""
        text = os.fspath(value)
        return Path(text) if is_hub_id(text) else super().convert(value, param, ctx)


PATH = _Path()
INPUT = _Input()
SOURCE = _Source()
MODEL_ARGUMENT = click.argument("model", type=INPUT)
SOURCE_ARGUMENT = click.argument("model", type=SOURCE)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line, made safe to show: names, prompts and paths in it may come from strangers."""
    click.echo(printable(text, _LONGEST_LINE), err=err)


def judges(given: tuple[Path, ...]) -> dict[str, Any]:
    """What `--classifier` names, once or twice, by the arguments of Python.

    Raises:
        PeckerError: three and more.
    """
    if len(given) > 2:
        raise PeckerError(f"--classifier: at most two judges, got {len(given)}; leave some out")
    return dict(zip(("classifier", "second_classifier"), given, strict=False))


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator that adds these options, in this order."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def settings_option(example: str) -> Callable[[F], F]:
    """Adds --set, whose help shows this example."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help=f"Any other setting, e.g. --set {example}. May be given again.",
    )


machine_options = together(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--threads",
        type=click.IntRange(1, _MOST_THREADS),
        help="CPU threads.  [default: all cores]",
    ),
)
hub_options = together(  # fields of `Request`
    click.option("--revision", help="Of a model on the hub: branch, tag or commit."),
    click.option("--variant", help="Of the weights, e.g. fp16, where a part has it."),
    click.option(
        "--offline",
        "local_files_only",
        is_flag=True,
        help="Take of the hub only what was downloaded before.",
    ),
)
seed_option = click.option("--seed", type=int, help="Seed of everything random.")
run_options = together(
    click.option("--force", is_flag=True, help="Delete the run that --out holds and start anew."),
    machine_options,
)
# They lay values over a configuration; None or () where not given. --forget and --override arrive
# as the tuples `forget` and `overrides`.
training_options = together(
    click.option(
        "--forget",
        multiple=True,
        help="Class to erase: name or index. May be given again, each with its --override.",
    ),
    click.option(
        "--override",
        "overrides",
        multiple=True,
        help="Class in its place: name, index, 'random', 'nearest' by the model's predictions, or "
        "'classifier': what that takes the class for.",
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
data_options = together(  # what `datasets.loading.load_images` takes
    click.option("--dataset", type=click.Choice(DATASETS), help="Images to read."),
    click.option(
        "--data-root",
        type=PATH,
        help="Folder that holds cifar-10-batches-py or stl10_binary; for fashion-mnist, its four "
        "files; for images, the folders train and test with a sub-folder per class, or train.npz "
        "and test.npz.",
    ),
    click.option(
        "--download",
        is_flag=True,
        help="Fetch CIFAR-10 or STL-10 if it is not in --data-root; else nothing is downloaded.",
    ),
)
sampler_options = together(
    click.option(
        "--sampler",
        "method",
        type=click.Choice(["one-step", "ddim", "ddpm"]),
        help="How images are drawn.  [default: by --steps]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        help="1: one-step generator; more: DDIM.  [default: 1 for an erased model, 50 for a "
        "teacher]",
    ),
    click.option("--eta", type=float, help="Randomness of DDIM's steps, 0 to 1.  [default: 0]"),
    click.option(
        "--t-init", type=int, help="Start of the one-step generator.  [default: the model's]"
    ),
)

prompt_judge_options = together(  # what tells what images of prompts show, beside a classifier
    click.option("--nudity-detector", type=INPUT, help="ONNX file in NudeNet's format."),
    click.option(
        "--nudity-threshold", type=float, help="Lowest score that counts.  [default: 0.25]"
    ),
    click.option(
        "--nudity-channel-order",
        type=click.Choice(["rgb", "bgr"]),
        help="What the detector sees; bgr gives NudeNet's own counts.  [default: rgb]",
    ),
    click.option("--clip", type=INPUT, help="CLIP folder."),
    click.option("--faces", help="Recogniser of faces, trusted:MODULE:OBJECT."),
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
    from pecker_fast.runs.reading import parse_yaml

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
