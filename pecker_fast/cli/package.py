"""`pecker-fast convert`, `recipes` and `info`: published checkpoints, and what the package has."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli import shared
from pecker_fast.cli.common import echo, prepare, result
from pecker_fast.cli.shared import INPUT, PATH, command, flag, option
from pecker_fast.errors import PeckerError
from pecker_fast.files import shown

__all__ = ["SLOTS", "convert", "info", "recipes"]

# `published.SLOTS`, which only torch can import; a test holds the two together.
SLOTS = ("ema", "model", "generator", "pseudo-score")


@command(
    click.argument("checkpoint", type=INPUT),
    option("--out", "Folder to write.", PATH, required=True),
    option(
        "--slot", "Which of the networks in the file.  [default: the EMA, else the network itself]",
        list(SLOTS),
    ),
    option(
        "--classes", "cifar10, stl10, or names by label: 'ant,bee,cat'.  [default: as the sizes "
        "tell]",
    ),
    option(
        "--size", "Height and width of the images.  [default: so that attention is at 16x16]",
        least=1,
    ),
    flag("--force", "Replace what is at --out."),
    examples="""
    pecker-fast convert ckpts/ckpt.pth --out cifar10
    pecker-fast convert sfd/ckpt-50000.pth --out psi --slot pseudo-score

CHECKPOINT is a file that training of SA, SalUn, SFD or EraseDiff wrote, for CIFAR-10, STL-10 or
another size, or a safetensors file of the network's weights. No code in it is run; a file that
cannot be read otherwise is refused.
""",
)  # fmt: skip
def convert(checkpoint: Path, out: Path, **options: Any) -> None:
    """Make a model folder of a published checkpoint."""
    from pecker_fast.models.conversion import convert_checkpoint

    _, lines = convert_checkpoint(checkpoint, out, **options)
    for line in lines:
        echo(line)
    echo(f"wrote {out}")


@click.group(short_help="List, show or copy the recipes that ship with the package.")
def recipes() -> None:
    """The configurations that `--config` and `--recipe` take by name."""


@recipes.command("list")
def list_recipes() -> None:
    """Show the names, and what each is for."""
    for title, folder in _folders().items():
        click.echo(title)
        for file in sorted(folder.glob("[!_]*.yaml")):
            lines = file.read_text().splitlines()[:3]
            comment = " ".join(line[2:] for line in lines if line.startswith("# "))
            sentence = comment.split(". ")[0].rstrip(".")
            click.echo(f"  {file.stem:25} {textwrap.shorten(sentence, 74, placeholder=' ...')}")


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe, and those that it builds on before it."""
    for file in reversed(list(_chain(name))):
        click.echo(f"# ---- {file.stem}")
        click.echo(file.read_text())


@recipes.command()
@click.argument("name")
@click.argument("file", type=PATH)
def copy(name: str, file: Path) -> None:
    """Write a recipe to FILE, to be changed; what it builds on it goes on building on."""
    text = next(_chain(name)).read_text()
    try:
        with open(file, "x", encoding="utf-8") as written:
            written.write(text)
    except OSError as error:
        raise PeckerError(
            f"{file}: cannot be written ({error.strerror or error}); name a file that is not there"
        ) from error
    echo(f"{file}: give it to --config or --recipe")


def _folders() -> dict[str, Path]:
    package = Path(__file__).parent.parent
    return {
        "erase, distill": package / "distill" / "recipes",
        "erase, by what it is compared with": package / "methods" / "recipes",
        "train-teacher": package / "methods" / "training_recipes",
    }


def _chain(name: str) -> Iterator[Path]:
    """The file of a recipe, then that which it builds on, and so on.

    Raises:
        PeckerError: there is no such recipe.
    """
    import yaml

    known = {file.stem: file for folder in _folders().values() for file in folder.glob("*.yaml")}
    base: str | None = name
    while base is not None:
        if base not in known:
            raise PeckerError(f"no recipe is called {shown(base)}; `recipes list` shows them")
        yield known[base]
        base = yaml.safe_load(known[base].read_text()).get("base")


@command(shared.json, examples="    pecker-fast info --json > machine.json")
def info() -> None:
    """Show versions, devices and backends."""
    facts = _facts()
    result(_lines(facts), lambda: facts)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    machine = facts["machine"]
    yield "versions"
    for name, number in facts["versions"].items():
        yield f"  {name:12} {number}"
    yield "machine"
    yield f"  {'processor':12} {machine['processor']}, {machine['cores']} usable cores"
    yield f"  {'torch':12} {machine['threads']} threads, {machine['cpu_capability']}"
    devices = ", ".join(facts["cuda_devices"]) or f"none ({facts['cuda_reason']})"
    yield f"  {'CUDA':12} {devices}"
    yield "optimizer backends"
    for name, reason in facts["backends"].items():
        usable = "on the CPU, for tests" if name in facts["on_host"] else "available"
        yield f"  {name:12} {usable if reason is None else f'no: {reason}'}"
        if name == "cpu" and reason is None:
            kernels = facts["kernels"]
            yield f"  {'':12} uses {kernels['used']} of {', '.join(kernels['known'])}"
    chosen = ", ".join(f"{name} on {device}" for device, name in facts["auto"].items())
    yield f"  {'auto':12} {chosen}"


def _facts() -> dict[str, Any]:
    import torch

    from pecker_fast import backends
    from pecker_fast.machine import machine_facts, versions

    prepare("cpu", None, models=False)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reasons, built_for = backends.available(), torch.version.cuda
    kernels = None
    if reasons["cpu"] is None:  # the instruction sets that the compiled kernels can use here
        from pecker_fast import _C
        from pecker_fast.backends.cpu import instruction_set

        kernels = {"used": instruction_set(), "known": _C.instruction_sets()}
    types = ["cpu"] + (["cuda"] if count else [])
    return {
        "versions": versions(),
        "machine": machine_facts(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "cuda_reason": "this torch is built without CUDA"
        if built_for is None
        else f"torch is built for CUDA {built_for}, but no device or driver is usable",
        "backends": dict(reasons),
        "on_host": list(backends.on_host()),
        "kernels": kernels,
        "auto": {device: backends.name_of(backends.select("auto", device)) for device in types},
    }
