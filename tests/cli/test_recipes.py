"""`pecker-fast recipes`."""

import pytest
from click.testing import CliRunner

from pecker_fast.cli import group, main
from pecker_fast.distill.config import load_config, recipe_names
from pecker_fast.methods import config as methods
from pecker_fast.methods.training_config import teacher_recipe_names


def run(*arguments):
    done = CliRunner().invoke(group, ["recipes", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_every_recipe_is_listed_with_what_it_is_for():
    lines = [line.split(maxsplit=1) for line in run("list").splitlines() if line[0] == " "]
    expected = {*recipe_names(), *methods.baseline_names(), *teacher_recipe_names()}
    assert {name for name, *_ in lines} == expected
    assert all(len(line) == 2 and len(line[1]) > 5 for line in lines)


def test_one_is_shown_after_those_that_it_builds_on():
    text = run("show", "sfd_celebrity")
    assert (
        text.index("# ---- _text") < text.index("# ---- _sfd") < text.index("SFD's celebrity run")
    )


def test_a_copy_is_the_same_configuration(tmp_path, capsys):
    copy = tmp_path / "mine.yaml"
    run("copy", "second_stage", str(copy))
    assert load_config(copy) == load_config("second_stage")
    copy.write_text("mine")
    assert main(["recipes", "copy", "object", str(copy)]) == 2
    assert "name a file that is not there" in capsys.readouterr().err
    assert copy.read_text() == "mine"


@pytest.mark.parametrize("name", ["nothing", "", "../config", "\x1b[31m"])
def test_no_such_recipe(name, capsys):
    assert main(["recipes", "show", name]) == 2
    said = capsys.readouterr().err
    assert "recipes list" in said and "\x1b" not in said
