"""Installing without a compiler succeeds and says why; the same sources give the same wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def setup(*words: object, tree: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools", minversion="70.1", reason="older ones make no wheel")
    drop = ("CXX", "PECKER_FAST_REPOSITORY")
    env = {n: v for n, v in os.environ.items() if n not in drop and "GITHUB" not in n}
    command = [sys.executable, "setup.py", "-q", *map(str, words)]
    return subprocess.run(
        command, cwd=tree, env=env | variables, capture_output=True, text=True, check=False
    )


def build(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    places = ("--build-lib", folder / "lib", "--build-temp", folder / "temp")
    return setup("build_ext", *places, **variables)


def test_build_without_a_compiler_succeeds_and_says_why(tmp_path: Path) -> None:
    done = build(tmp_path, PATH=str(tmp_path))  # nothing on it
    assert done.returncode == 0, done.stderr
    package = tmp_path / "lib" / "pecker_fast"
    report = json.loads((package / "_build_report.json").read_text())
    for backend, module in (("cpu", "_C"), ("cuda", "_cuda")):
        assert report[backend].startswith("not built at installation: no C++ compiler"), backend
        assert f"backend {backend} not built at installation" in done.stderr
        assert not list(package.glob(f"{module}.*"))


@pytest.mark.parametrize("switch", ["0", "1"])
def test_build_without_nvcc(tmp_path: Path, switch: str) -> None:
    """PECKER_FAST_CUDA=0 leaves the module out and says so, =1 makes its absence an error."""
    tools = tmp_path / "tools"  # a C++ compiler that makes empty files, and no nvcc
    tools.mkdir()
    compiler = tools / "c++"
    compiler.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "open(sys.argv[sys.argv.index('-o') + 1], 'w').close()\n"
        "if '-MF' in sys.argv: open(sys.argv[sys.argv.index('-MF') + 1], 'w').close()\n"
    )
    compiler.chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    done = build(tmp_path, PATH=path, CUDA_HOME=str(tmp_path), PECKER_FAST_CUDA=switch)
    if switch == "1":
        assert done.returncode != 0
        assert "no nvcc on the PATH" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "lib/pecker_fast/_build_report.json").read_text())
        reason = "not built at installation: switched off by PECKER_FAST_CUDA=0"
        assert report == {"cpu": "built", "cuda": reason}


@pytest.mark.slow
def test_two_builds_of_the_python_part_are_the_same_file(tmp_path: Path) -> None:
    """In two folders, with other times of the files, and no compiler on the PATH."""
    wheels = []
    for index, name in enumerate(("one", "another")):
        tree = tmp_path / name
        leave_out = shutil.ignore_patterns(
            ".*", "build", "demo", "demo-run", "tests", "__pycache__", "*.so", "_build_report.json"
        )
        shutil.copytree(ROOT, tree, ignore=leave_out, symlinks=True)
        for file in tree.rglob("*.py"):
            os.utime(file, (1e9 + index, 1e9 + index))
        epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
        done = setup("bdist_wheel", tree=tree, PATH=str(tmp_path), **epoch)
        assert done.returncode == 0, done.stderr
        wheels += (tree / "dist").glob("*.whl")
    one, another = (wheel.read_bytes() for wheel in wheels)
    assert one == another and 500_000 < len(one) < 1_000_000  # no weights in it


@pytest.mark.parametrize("known", [True, False])
def test_links_of_the_long_description(tmp_path: Path, known: bool) -> None:
    """On PyPI nothing lies beside the page: with an address all links are absolute."""
    address = {"PECKER_FAST_REPOSITORY": "https://example.org/pecker_fast/"} if known else {}
    done = setup("egg_info", "--egg-base", tmp_path, **address)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "pecker_fast.egg-info" / "PKG-INFO").read_text()
    assert "Description-Content-Type: text/markdown" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 5
    readme = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    if known:
        assert all(link.startswith("https://") for link in links)
        assert "https://example.org/pecker_fast/raw/HEAD/docs/demo.png" in links
        assert "https://example.org/pecker_fast/blob/HEAD/docs/evidence.md#limits" in links
    else:
        assert links == readme
    for link in readme:  # what it is made of is there
        assert "://" in link or (ROOT / link.partition("#")[0]).is_file(), link
