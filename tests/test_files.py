"""Files are written whole or not at all."""

import os
import stat

import pytest

from pecker_fast.files import replacing, replacing_folder, write_text


def test_success_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "x.txt", "text")


def test_the_umask_decides_who_may_read(tmp_path):
    path = tmp_path / "x.safetensors"
    before = os.umask(0o022)
    try:
        with replacing(path) as temporary:
            temporary.write_text("private")
            temporary.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    for text in ("old", "new"):
        with replacing_folder(target) as partial:
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / "file").write_text(text)
            (partial / "inner" / "file").chmod(0o600)
    assert (target / "inner" / "file").read_text() == "new"
    (tmp_path / "other").touch()
    assert (target / "inner" / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(RuntimeError, match="full"), replacing_folder(target) as partial:
        partial.mkdir()
        raise RuntimeError("the disk is full")
    assert (target / "inner" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
