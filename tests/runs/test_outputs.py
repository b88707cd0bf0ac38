"""Which directories a run may take, and what a refusal leaves there."""

import pytest

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.runs.directory import run_directory
from pecker_fast.runs.finding import find_model


def refuse(out, force=False):
    with pytest.raises(PeckerError, match="weights"), run_directory(out, force, Ranks()):
        raise PeckerError("weights of another network")


def test_a_refusal_leaves_nothing(tmp_path):
    refuse(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_refusal_leaves_what_was_there(tmp_path):
    with run_directory(tmp_path, False, Ranks()) as directory:
        directory.save(3, {})
    refuse(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "checkpoint-00000003.pt"}


@pytest.mark.parametrize("name", ["tensorboard", "model"])
def test_a_run_from_elsewhere_does_not_write_through_its_links(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()
    (tmp_path / "run" / name).symlink_to(tmp_path)
    with pytest.raises(PeckerError, match=f"{name}: is a link"):
        run_directory(tmp_path / "run", False, Ranks()).__enter__()


def test_a_copy_without_the_lock_is_taken_up(tmp_path):
    with run_directory(tmp_path, False, Ranks()) as directory:
        directory.save(3, {})
        directory.write_config("seed: 0")
    (tmp_path / "run.lock").unlink()
    with run_directory(tmp_path, False, Ranks()) as directory:
        assert directory.load()["iteration"] == 3
    (tmp_path / "run.lock").unlink()
    with pytest.raises(PeckerError, match="not made a model yet"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", "checkpoint-00000003.pt"])
def test_other_folders_are_not_taken(tmp_path, name):
    (tmp_path / name).touch()
    for force in (False, True):
        with pytest.raises(PeckerError, match=str(tmp_path)):
            run_directory(tmp_path, force, Ranks()).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [name]
