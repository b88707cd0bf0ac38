"""A missing package is said in one line (check_lean.py: the core needs none)."""

import subprocess
import sys

import pytest
from pecker_fast_demo import teacher_folder

from pecker_fast import cli
from pecker_fast.evaluate import grid
from pecker_fast.extras import missing_package

ERASE = ("diffusers", "transformers", "pydantic", "yaml", "click", "tqdm", "PIL")


def run(code: str, without: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Run Python code where these packages cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({without}))\n"  # None: not importable
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_a_command_line_without_its_packages_says_what_to_install():
    code = "from pecker_fast.__main__ import main; sys.exit(main())"
    done = run(code, without=ERASE)
    assert done.returncode == 2
    assert "pecker-fast[erase]" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("diffusers.models", "diffusers", "erase"),
        ("yaml", "pyyaml", "erase"),
        ("torch_fidelity", "torch-fidelity", "evaluate"),
        ("triton", "triton", "triton"),
        ("colorama", "None", None),
        (None, "None", None),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(module, package, extra):
    line = str(missing_package(ModuleNotFoundError("", name=module)))
    assert package in line and (extra is None or f"pecker-fast[{extra}]" in line)


def test_a_command_without_a_package_of_its_own_says_what_to_install(tmp_path, monkeypatch, capfd):
    for name in {"matplotlib", *(n for n in sys.modules if n.startswith("matplotlib"))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("pecker_fast.evaluate.grid._font", grid._font.__wrapped__)
    asked = ["sample", str(teacher_folder()), "--per-class", "1", "--steps", "1", "--png"]
    assert cli.main([*asked, str(tmp_path / "grid.png")]) == 2
    assert "pecker-fast[evaluate]" in capfd.readouterr().err
    assert not (tmp_path / "grid.png").exists()
