"""Files are written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from pecker_fast.errors import PeckerError
from pecker_fast.files import (
    check_output_file,
    few,
    read_json,
    remove_leftovers,
    replacing,
    replacing_folder,
    shown,
    write_text,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


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


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 10**6, "nested too deeply"),
        (b"[" * 100 + b"]" * 100, "nested deeper than 64"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (rb'{"a": "\ud800"}', "surrogates"),
        (b'"\xff"', "not UTF-8"),
        (b" " * (1 + (16 << 20)), "larger than the 16 MiB"),
    ],
)
def test_json_that_is_refused(tmp_path, content, named):
    file = tmp_path / "facts.json"
    file.write_bytes(content)
    with pytest.raises(PeckerError, match=named) as caught:
        read_json(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 300


def test_json_from_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, named in (("none", "no such file"), ("pipe", "no regular file"), (".", "no regular")):
        with pytest.raises(PeckerError, match=named):
            read_json(tmp_path / name)


def test_values_are_shown_in_short():
    bomb = ["x" * 1000]
    for _ in range(8):
        bomb = [bomb] * 10
    assert len(shown(bomb)) < 210 and len(shown({"a": "x" * 10**6})) < 210
    assert few([f"name {i}" for i in range(9)]) == "'name 0', 'name 1', 'name 2' and 6 more"


@pytest.mark.parametrize("kind", ["link", "dangling", "device", "pipe", "folder"])
def test_only_files_are_replaced(tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "out.json"
    victim.write_text("mine")
    if kind == "device":
        path = Path("/dev/full")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    before = path.lstat()
    with pytest.raises(PeckerError, match=str(path)):
        write_text(path, "text")
    with pytest.raises(PeckerError, match=str(path)):
        check_output_file(path, force=True)
    assert path.lstat().st_ino == before.st_ino and path.lstat().st_mode == before.st_mode
    assert victim.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_temporary_names_cannot_be_guessed(tmp_path):
    names, longest = set(), 255  # characters; the temporary names have room beside them
    for _ in range(3):
        with replacing(tmp_path / ("x" * (longest - 4) + ".png")) as temporary:
            names.add(temporary.name)
        with replacing_folder(tmp_path / ("m" * longest)) as new:
            new.mkdir()
            names.add(new.parent.name)
            assert stat.S_IMODE(new.parent.stat().st_mode) == 0o700
    assert len(names) == 6


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    with pytest.raises(OSError), replacing(tmp_path / "x.txt") as temporary:
        temporary.unlink()
        temporary.symlink_to(victim)
    assert victim.read_text() == "mine" and list(tmp_path.iterdir()) == [victim]


def test_leftovers_of_killed_processes_go(tmp_path):
    (tmp_path / ".x.0123.tmp.png").touch()
    (tmp_path / ".model.abc.tmp" / "model").mkdir(parents=True)
    (tmp_path / ".link.tmp").symlink_to(tmp_path)
    (tmp_path / "kept.png").touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"]
