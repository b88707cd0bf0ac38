"""Options of the command line that several commands share, and how one is declared."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from pecker_fast import progress
from pecker_fast.cli.torchrun import several
from pecker_fast.datasets import DATASETS
from pecker_fast.erasure.request import Judges, flag_of
from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import is_hub_id

__all__ = [
    "AS_JSON", "INPUT", "PATH", "SOURCE", "command", "data", "dry_run", "flag", "iterations",
    "json", "machine", "option", "options_of", "out", "print_config", "prompt_judges", "quiet",
    "run", "sampler", "seed", "settings", "together", "training",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])

AS_JSON = f"{__name__}.json"
"""In a context's `meta`: whether the result is wanted as JSON."""
_MOST_THREADS = 4096


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


def _be_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(progress.quiet())


def _want_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[AS_JSON] = value


def _alone(_: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and several():
        raise PeckerError(f"{param.opts[0]}: runs in one process; start it without torchrun")
    return value


out = option("--out", "Run directory.", PATH, required=True)
quiet = flag(
    "--quiet", "No progress and no notes on stderr; errors and the result as ever.",
    is_eager=True, expose_value=False, callback=_be_quiet,
)  # fmt: skip
json = flag("--json", "The result as JSON on stdout.", expose_value=False, callback=_want_json)
print_config = flag(
    "--print-config", "Print all settings as YAML that --config takes, and do nothing else.",
    callback=_alone,
)  # fmt: skip
dry_run = flag(
    "--dry-run", "Say which memory, time and disk the run takes, by two iterations; nothing is "
    "written. What does not fit is refused.", callback=_alone,
)  # fmt: skip
machine = together(
    option("--device", "auto, cpu, cuda or cuda:N.", default="auto"),
    option("--threads", "CPU threads.  [default: all cores]", least=1, most=_MOST_THREADS),
)
run = together(flag("--force", "Delete the run that --out holds and start anew."), machine)
seed = option("--seed", "Seed of everything random.", int)
iterations = option("--iterations", "Length of the run.", int)


def settings(example: str) -> Callable[[F], F]:
    """Adds --set, whose help shows this example."""
    said = f"Any other setting, e.g. --set {example}. May be given again."
    return option("--set settings", said, multiple=True, metavar="KEY=VALUE")


# They lay values over a configuration; None or () where not given. --forget and --override arrive
# as the tuples `forget` and `overrides`.
training = together(
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
    seed,
    settings("generator.lr=1e-4"),
)  # fmt: skip
data = together(  # what `datasets.loading.load_images` takes
    option("--dataset", "Images to read.", list(DATASETS)),
    option(
        "--data-root", "Folder that holds cifar-10-batches-py or stl10_binary; for fashion-mnist, "
        "its four files; for images, the folders train and test with a sub-folder per class, or "
        "train.npz and test.npz.", PATH,
    ),
    flag("--download", "Fetch CIFAR-10 or STL-10 if it is not in --data-root."),
)  # fmt: skip
sampler = together(
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
prompt_judges = together(  # what tells what images of prompts show, beside a classifier
    options_of(Judges),
    option(
        "--nudity-channel-order", "What the detector sees; bgr gives NudeNet's own counts.  "
        "[default: rgb]", ["rgb", "bgr"],
    ),
)  # fmt: skip
