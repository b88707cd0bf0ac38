"""Every command that README, docs/ and the commands' own help show can be typed as it stands."""

import re
import shlex
from pathlib import Path

import click
import pytest

from pecker_fast.cli import group
from pecker_fast.distill import recipe_names
from pecker_fast.methods import config, training_config
from pecker_fast.runs.settings import recipes_in

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TORCHRUN = r"torchrun(\s+--[\w-]+\s+\S+)*\s+-m pecker_fast\.cli"
COMMAND = re.compile(rf"^\s*(?:pecker-fast|{TORCHRUN}) (?P<rest>\S.*)$")
RECIPES = {*recipe_names(), *recipes_in(config.RECIPES), *recipes_in(training_config.RECIPES)}


def command_lines(text):
    """The arguments of each command, without comments; redirections and the like left out.

    A line that begins with an option goes on with the command before it, as in help pages.
    """
    text = re.sub(r"\\\n|\n\s+(?=--)", " ", text)
    found = (COMMAND.match(re.sub(r"\s#.*|\s>.*", "", line)) for line in text.splitlines())
    return [shlex.split(line["rest"]) for line in found if line]


def shown():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S):
            yield from ((page.name, arguments) for arguments in command_lines(block))
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        for arguments in command_lines(f"{command.help}\n{command.epilog or ''}"):
            yield f"{name} --help", arguments


CASES = list(shown())


@pytest.mark.parametrize(("place", "arguments"), CASES, ids=lambda value: str(value)[:60])
def test_shown_command_has_these_options(place, arguments):
    context = click.Context(group)
    name, *rest = arguments
    command = group.get_command(context, name)
    assert command is not None, f"{place}: no command {name}"
    if isinstance(command, click.Group):
        name, *rest = rest
        command = command.get_command(context, name)
    values, leftover, _ = command.make_parser(click.Context(command)).parse_args(list(rest))
    assert not leftover
    for option in ("config", "recipe"):
        recipe = values.get(option)
        assert recipe is None or recipe in RECIPES or recipe == "recipe.yaml", place
    required = {p.name for p in command.params if p.required}
    assert required <= {key for key, value in values.items() if value is not None}


def test_they_were_found():
    places = {place for place, _ in CASES}
    assert {"README.md", "many-gpus.md", "erase --help", "evaluate --help"} <= places
    assert len(CASES) > 50
