"""Installing without a C++ compiler succeeds and leaves the reason behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_build_without_a_compiler_succeeds_and_says_why(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="a build needs setuptools")
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    env = {name: value for name, value in os.environ.items() if name != "CXX"}
    env["PATH"] = str(tmp_path)  # nothing on it
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "only the `reference` backend is installed" in done.stderr
    package = tmp_path / "lib" / "pecker_fast"
    reason = json.loads((package / "_build_report.json").read_text())["cpu"]
    assert reason.startswith("the C++ build failed at installation: ")
    assert not list(package.glob("_C*"))
