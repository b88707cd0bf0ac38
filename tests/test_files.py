"""Files are written whole or not at all."""

import errno
import os
import stat

import pytest

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_json, replacing, replacing_folder, shown, write_text


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


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_args, **_options):  # root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PeckerError, match=os.strerror(errno.EACCES)):
        read_json(tmp_path / "a.json")


def test_values_are_shown_in_short():
    bomb = ["x" * 1000]
    for _ in range(8):
        bomb = [bomb] * 10
    assert len(shown(bomb)) < 210 and len(shown({"a": "x" * 10**6})) < 210
    assert few([f"name {i}" for i in range(9)]) == "'name 0', 'name 1', 'name 2' and 6 more"
