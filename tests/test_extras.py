"""A missing package is said in one line; the core needs torch, numpy and safetensors only."""

import subprocess
import sys

import pytest

from pecker_fast import cli
from pecker_fast.data import teacher_folder
from pecker_fast.extras import missing_package

CORE = (
    "import pecker_fast as p; p.MaskedAdamW, p.SaliencyMask, p.saliency_scores; "
    "p.save_patch, p.apply_patch, p.remove_patch"
)
ERASE = ("diffusers", "transformers", "pydantic", "yaml", "click", "tqdm", "PIL")


def run(code: str, without: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Run Python code where these packages cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({without}))\n"  # None: not importable
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_the_core_needs_neither_extra():
    # torch itself looks for some of the second extra's packages, and does without them.
    done = run(CORE, without=(*ERASE, "matplotlib", "onnxruntime", "torch_fidelity"))
    assert done.returncode == 0, done.stderr


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
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(module, package, extra):
    line = missing_package(ModuleNotFoundError("", name=module))
    assert package in line and f"pecker-fast[{extra}]" in line


def test_a_package_of_no_extra_is_nobodys_remedy():
    assert missing_package(ModuleNotFoundError("", name="colorama")) is None
    assert missing_package(ModuleNotFoundError("")) is None


def test_a_command_without_a_package_of_its_own_says_what_to_install(tmp_path, monkeypatch, capfd):
    for name in {"matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))}:
        monkeypatch.setitem(sys.modules, name, None)
    asked = ["sample", str(teacher_folder()), "--per-class", "1", "--steps", "1", "--png"]
    assert cli.main([*asked, str(tmp_path / "grid.png")]) == 2
    assert "pecker-fast[evaluate]" in capfd.readouterr().err
    assert not (tmp_path / "grid.png").exists()
