"""What several commands share: options, paths, what is said in which form, devices, threads."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pecker_fast.cli.torchrun import is_first, several
from pecker_fast.datasets import DATASETS
from pecker_fast.erasure.request import Judges, flag_of
from pecker_fast.errors import PeckerError, printable
from pecker_fast.files import shown
from pecker_fast.progress import note, quiet
from pecker_fast.runs.finding import is_hub_id
from pecker_fast.runs.interrupts import saving_at_interrupt

if TYPE_CHECKING:
    import torch

    from pecker_fast.distributed import Ranks
    from pecker_fast.runs.settings import Settings

__all__ = [
    "INPUT",
    "PATH",
    "SOURCE",
    "classifiers_option",
    "command",
    "config_values",
    "data_options",
    "dry_run_option",
    "echo",
    "flag",
    "iterations_option",
    "json_option",
    "judges",
    "machine_options",
    "option",
    "options_of",
    "out_option",
    "prepare",
    "print_config_option",
    "prompt_judge_options",
    "quiet_option",
    "result",
    "run_options",
    "sampler_options",
    "say_config",
    "seed_option",
    "settings_option",
    "together",
    "train",
    "training_options",
]

F = TypeVar("F", bound=Callable[..., Any])

_MOST_THREADS = 4096
_LONGEST_LINE = 2000
"""Characters of a line of output."""
_JSON = f"{__name__}.json"


class _Path(click.Path):
    """A path, as a `Path`; refused before anything heavy is loaded.

    Args:
        there: it must be there.
        hub: or it may be the id of a model on the hub.
    """

    def __init__(self, *, there: bool = False, hub: bool = False) -> None:
        super().__init__()
        self._there, self._hub = there, hub

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path.

        Raises:
            PeckerError: it is empty, as an unset variable of the shell is: `Path` takes that for
                the current folder. Or its bytes are no text, which safetensors cannot open; or it
                is a link that leads to itself; or nothing is there.
        """
        name, text = "path" if param is None else param.opts[0], os.fspath(value)
        if self._hub and is_hub_id(text):
            return Path(text)
        if not text:
            raise PeckerError(f"{name}: is empty; give a path, . for the current folder")
        if text.encode(errors="replace").decode() != text:
            raise PeckerError(f"{name}: {text} is no UTF-8; rename it")
        try:
            os.stat(text)
        except OSError as error:
            if error.errno == errno.ELOOP:  # pathlib would say so in another way at each place
                raise PeckerError(f"{name}: {text} is a link that leads to itself") from None
        if self._there and not os.path.exists(text):
            said = f"{name} " if isinstance(param, click.Option) else ""
            raise PeckerError(f"{said}{Path(text)}: no such file or folder; check the path")
        return Path(text)


PATH, INPUT, SOURCE = _Path(), _Path(there=True), _Path(there=True, hub=True)
_TYPES = {"Path": PATH, "Input": INPUT, "Source": SOURCE, "str": str, "int": int, "bool": bool}


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator that adds these options, in this order."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def option(flag: str, help: str, kind: Any = None, **more: Any) -> Callable[[F], F]:
    """Adds an option.

    Args:
        flag: how it is called, and after a space the name of its argument, if that is another.
        help: what `--help` says; of a default it says that itself.
        kind: the type, or a list of words to choose from.
        more: as `click.option` takes it; `least` is the smallest number.
    """
    if isinstance(kind, list):
        kind = click.Choice(kind)
    if (least := more.pop("least", None)) is not None:
        kind = click.IntRange(least, more.pop("most", None))
    shown = more.get("default") is not None
    return click.option(*flag.split(), type=kind, help=help, show_default=shown, **more)


def flag(name: str, help: str, **more: Any) -> Callable[[F], F]:
    """Adds an option without a value."""
    return click.option(*name.split(), is_flag=True, help=help, **more)


def options_of(kind: type[Any], *names: str) -> Callable[[F], F]:
    """Adds those fields of a dataclass that are options; of some names, or all."""
    return together(*(
        _of_field(each) for each in fields(kind)
        if "help" in each.metadata and (not names or each.name in names)
    ))  # fmt: skip


def _of_field(each: Any) -> Callable[[F], F]:
    said, kind = each.metadata, each.type.split(" |")[0]
    name = f"{flag_of(each)} {each.name}"
    if kind == "bool":
        return flag(name, said["help"])
    more: dict[str, Any] = {"multiple": kind == "Sequence[str]"}
    if each.default not in (None, ()):
        more["default"] = each.default
    if said["least"] is not None:
        more |= {"least": said["least"], "most": 1_000_000}
    return option(name, said["help"], _TYPES.get(kind, str), **more)


def command(*options: Callable[[Any], Any], examples: str) -> Callable[[Any], click.Command]:
    """A command with these options; the function's docstring is its help.

    Args:
        options: in the order in which they are listed.
        examples: command lines, and after an empty line what else is to be said.
    """

    def make(function: Any) -> click.Command:
        epilog = f"\b\nExamples:\n{examples.strip(chr(10))}".replace("\n\n", "\n\n\b\n")
        return click.command(epilog=epilog)(together(*options)(function))

    return make


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
    if click.get_current_context().meta.get(_JSON):
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


def _be_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(quiet())


def _want_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


def _alone(_: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and several():
        raise PeckerError(f"{param.opts[0]}: runs in one process; start it without torchrun")
    return value


out_option = option("--out", "Run directory.", PATH, required=True)
quiet_option = flag(
    "--quiet", "No progress and no notes on stderr; errors and the result as ever.",
    is_eager=True, expose_value=False, callback=_be_quiet,
)  # fmt: skip
json_option = flag(
    "--json", "The result as JSON on stdout.", expose_value=False, callback=_want_json
)
print_config_option = flag(
    "--print-config", "Print all settings as YAML that --config takes, and do nothing else.",
    callback=_alone,
)  # fmt: skip
dry_run_option = flag(
    "--dry-run", "Say which memory, time and disk the run takes, by two iterations; nothing is "
    "written. What does not fit is refused.", callback=_alone,
)  # fmt: skip
machine_options = together(
    option("--device", "auto, cpu, cuda or cuda:N.", default="auto"),
    option("--threads", "CPU threads.  [default: all cores]", least=1, most=_MOST_THREADS),
)
run_options = together(
    flag("--force", "Delete the run that --out holds and start anew."), machine_options
)
seed_option = option("--seed", "Seed of everything random.", int)
iterations_option = option("--iterations", "Length of the run.", int)


def settings_option(example: str) -> Callable[[F], F]:
    """Adds --set, whose help shows this example."""
    said = f"Any other setting, e.g. --set {example}. May be given again."
    return option("--set settings", said, multiple=True, metavar="KEY=VALUE")


# They lay values over a configuration; None or () where not given. --forget and --override arrive
# as the tuples `forget` and `overrides`.
training_options = together(
    option(
        "--forget", "Class to erase: name or index. May be given again, each with its --override.",
        multiple=True,
    ),
    option(
        "--override overrides", "Class in its place: name, index, 'random', 'nearest' by the "
        "model's predictions, or 'classifier': what that takes the class for.", multiple=True,
    ),
    option("--density", "Share of the parameters that may change.", float),
    option(
        "--mask kind", "Which of them: the most salient, random ones, or all.",
        ["saliency", "random", "full"],
    ),
    seed_option,
    settings_option("generator.lr=1e-4"),
)  # fmt: skip
data_options = together(  # what `datasets.loading.load_images` takes
    option("--dataset", "Images to read.", list(DATASETS)),
    option(
        "--data-root", "Folder that holds cifar-10-batches-py or stl10_binary; for fashion-mnist, "
        "its four files; for images, the folders train and test with a sub-folder per class, or "
        "train.npz and test.npz.", PATH,
    ),
    flag("--download", "Fetch CIFAR-10 or STL-10 if it is not in --data-root."),
)  # fmt: skip
sampler_options = together(
    option(
        "--sampler method", "How images are drawn.  [default: by --steps]",
        ["one-step", "ddim", "ddpm"],
    ),
    option(
        "--steps", "1: one-step generator; more: DDIM.  [default: 1 for an erased model, 50 for a "
        "teacher]", least=1,
    ),
    option("--eta", "Randomness of DDIM's steps, 0 to 1.  [default: 0]", float),
    option("--t-init", "Start of the one-step generator.  [default: the model's]", int),
)  # fmt: skip
prompt_judge_options = together(  # what tells what images of prompts show, beside a classifier
    options_of(Judges),
    option(
        "--nudity-channel-order", "What the detector sees; bgr gives NudeNet's own counts.  "
        "[default: rgb]", ["rgb", "bgr"],
    ),
)  # fmt: skip
classifiers_option = option(
    "--classifier classifiers", "Judge, see `evaluate`; given again, a second one.", INPUT,
    multiple=True,
)  # fmt: skip

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
