"""`pecker-fast recipes`: the configurations that ship with the package, to read and to build on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from pecker_fast.cli.common import echo

__all__ = ["recipes"]


@click.group(short_help="List, show or copy the recipes that ship with the package.")
def recipes() -> None:
    """The configurations that `--config` and `--recipe` take by name."""


@recipes.command("list", epilog="Example:\n\n    pecker-fast recipes list")
def list_recipes() -> None:
    """Show the names, and what each is for."""
    for title, folder in _folders():
        names = sorted(file.stem for file in folder.glob("[!_]*.yaml"))
        click.echo(title)
        for name in names:
            click.echo(f"  {name:25} {_first_line(folder / f'{name}.yaml')}")


@recipes.command(epilog="Example:\n\n    pecker-fast recipes show object")
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe, and those that it builds on before it."""
    for file in reversed(list(_chain(name))):
        click.echo(f"# ---- {file.stem}")
        click.echo(file.read_text())


@recipes.command(epilog="Example:\n\n    pecker-fast recipes copy object mine.yaml")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def copy(name: str, file: Path) -> None:
    """Write a recipe to FILE, to be changed; what it builds on it goes on building on."""
    from pecker_fast.errors import PeckerError

    text = next(_chain(name)).read_text()
    try:
        with open(file, "x", encoding="utf-8") as written:
            written.write(text)
    except OSError as error:
        raise PeckerError(
            f"{file}: cannot be written ({error.strerror or error}); name a file that is not there"
        ) from error
    echo(f"{file}: give it to --config or --recipe")


def _folders() -> list[tuple[str, Path]]:
    package = Path(__file__).parent.parent
    return [
        ("erase, distill", package / "distill" / "recipes"),
        ("erase, by what it is compared with", package / "methods" / "recipes"),
        ("train-teacher", package / "methods" / "training_recipes"),
    ]


def _chain(name: str) -> Iterator[Path]:
    """The file of a recipe, then that which it builds on, and so on.

    Raises:
        PeckerError: there is no such recipe.
    """
    import yaml

    from pecker_fast.errors import PeckerError
    from pecker_fast.files import shown

    base: str | None = name
    while base is not None:
        file = next((f / f"{base}.yaml" for _, f in _folders() if _is_recipe(f, base)), None)
        if file is None:
            raise PeckerError(f"no recipe is called {shown(base)}; `recipes list` shows them")
        yield file
        base = yaml.safe_load(file.read_text()).get("base")


def _is_recipe(folder: Path, name: str) -> bool:
    return name in {file.stem for file in folder.glob("*.yaml")}


def _first_line(file: Path) -> str:
    """The sentence that it begins with."""
    lines = file.read_text().splitlines()
    comment = " ".join(line[2:] for line in lines[:3] if line.startswith("# "))
    return textwrap.shorten(comment.split(". ")[0].rstrip("."), 74, placeholder=" ...")
