"""The folder for the Hugging Face kernels hub: it imports and steps from its folder alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parents[2]

# Run in a process that has the folder and torch, but no pecker_fast.
STEP = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pecker_fast":
            raise ImportError(f"{name} was asked for")
sys.meta_path.insert(0, Absent())
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", "tests"]))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "masked-adamw"
    command = [sys.executable, "tools/kernels_hub/build.py", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_layout(project):
    """What kernel-builder's documentation asks of a kernel without compiled parts."""
    config = tomllib.loads((project / "build.toml").read_text())
    module = config["general"]["name"].replace("-", "_")
    assert (project / "torch-ext" / module / "__init__.py").is_file()
    assert config["general"]["edition"] == 5
    assert "torch-noarch" in config
    for name in ("CARD.md", "flake.nix", "LICENSE", "benchmarks/benchmark.py"):
        assert (project / name).is_file(), name
    report = json.loads((project / "torch-ext" / module / "_build_report.json").read_text())
    assert report.keys() == {"cpu", "cuda"}
    kinds = {f.suffix for f in (project / "torch-ext").rglob("*") if f.is_file()}
    assert kinds == {f".{kind}" for kind in config["torch-noarch"]["pyext"]}


@pytest.mark.slow
def test_its_own_tests_pass_without_the_package(project, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PECKER_")}
    env |= {"PYTHONPATH": str(project / "torch-ext"), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
