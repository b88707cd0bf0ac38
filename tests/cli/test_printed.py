"""What the command line prints of files, names and arguments is harmless and of bounded length."""

import pytest
import torch

from pecker_fast import SaliencyMask, save_patch

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e"


def test_what_a_patch_says_about_itself(run, tmp_path):
    base = {"w": torch.zeros(8)}
    mask = SaliencyMask.from_dense({"w": torch.ones(8)})
    erased = {"w": torch.ones(8)}
    about = {"concept": f"a\n  base      forged {HOSTILE}", HOSTILE: "x" * 10**5}
    save_patch(tmp_path / "p.safetensors", base, erased, mask, **about)
    done = run("patch", "info", tmp_path / "p.safetensors")
    assert done.code == 0 and all(line.isprintable() for line in done.out.splitlines())
    assert sum(line.lstrip().startswith("base ") for line in done.out.splitlines()) == 1
    assert len(done.out) < 3000


@pytest.mark.parametrize("text", [HOSTILE, "x" * 10**5])
def test_arguments(run, files, tmp_path, text):
    for arguments in (
        ["sample", files.model, "--class", text, "--png", tmp_path / "x.png"],
        ["sample", tmp_path / text, "--png", tmp_path / "x.png"],
        ["sample", files.model, "--seed", text, "--png", tmp_path / "x.png"],
        [text],
    ):
        done = run(*arguments)
        assert done.code == 2 and len(done.err) < 2500
        assert all(line.isprintable() for line in done.err.splitlines())
