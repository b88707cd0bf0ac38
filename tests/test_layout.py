"""What import-linter does not see, and names at the root that others' packages have."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier())


@pytest.mark.parametrize("file", sorted((ROOT / "kernels").glob("*.py")), ids=lambda f: f.name)
def test_kernels_import_kernels_alone(file: Path) -> None:
    """`kernels` is no package of its own, so the layers' contract passes over it."""
    imported = [
        node.module or ""
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    ours = [name for name in imported if name.startswith("pecker_fast")]
    above = [n for n in ours if not n.startswith(("pecker_fast.kernels", "pecker_fast.errors"))]
    assert not above


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "pecker_fast"])
def test_a_folder_at_the_root_gives_way_to_a_package_of_its_name(name: str, tmp_path: Path) -> None:
    """Wherever the root is on the path, as it is for all that runs there."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; print({name}.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    # Theirs, or another package of that name that is installed here.
    assert done.stdout.strip() not in ("", "None", str(ROOT / name / "__init__.py")), done.stderr


IN_A_CHILD = """
import multiprocessing
def report():
    import kernels, transformers, diffusers, peft
    print(kernels.__file__)
if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=report)
    process.start(), process.join(), report()
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", [[], ["-m", "torch.distributed.run"]], ids=["python", "torchrun"])
def test_kernels_of_hugging_face_is_imported_at_the_root(start: list[str], tmp_path: Path) -> None:
    """transformers needs it; in a script, its forkserver's children, and torchrun's."""
    kernels = pytest.importorskip("kernels")
    pytest.importorskip("peft")
    (tmp_path / "script.py").write_text(IN_A_CHILD)
    command = [sys.executable, *start, str(tmp_path / "script.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [kernels.__file__] * 2, done.stderr
