"""Make the folder that a machine with a card, without network and git, needs beside the sources.

    python tools/gpu/prepare.py --python python3.12          # build/gpu, at most 64 MiB

It gets `commit`, `site/` (the packages of requirements.txt, unpacked for that Python) and
`modules/` (pecker_fast._C and _cuda, compiled for it). run.py puts them in their places over there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MOST_BYTES = 64 * 2**20
LEFT_OUT = ("tests", "test", "__pycache__", "bin", "include")


def site(python: str, folder: Path) -> None:
    """Unpack the packages: wheels alone, so nothing is built and nothing else comes with them.

    pydantic and its core belong together: the resolver is asked, and what it adds is left out.
    """
    names = [line.split("#")[0].strip() for line in (HERE / "requirements.txt").open()]
    wheels = [name for name in names if name]
    pairs = [name for name in wheels if name.startswith("pydantic")]
    rest = [name for name in wheels if name not in pairs]
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:"]
    target = ["--target", str(folder)]
    subprocess.run([*pip, *target, "pydantic"], check=True)
    subprocess.run([*pip, *target, "--upgrade", "--no-deps", *rest], check=True)
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and path.name in LEFT_OUT:
            shutil.rmtree(path)


def modules(python: str, folder: Path) -> None:
    """Compile both modules for that Python, with the tools that pip brings for it."""
    with tempfile.TemporaryDirectory() as tools:
        pip = [python, "-m", "pip", "install", "--quiet", "--target", tools]
        subprocess.run([*pip, "setuptools>=68", "pybind11>=2.12", "ninja"], check=True)
        environment = {**os.environ, "PYTHONPATH": tools, "PECKER_FAST_CUDA": "1"}
        environment["PATH"] = f"{tools}/bin{os.pathsep}{environment['PATH']}"
        lib, temp = Path(tools, "lib"), Path(tools, "temp")
        subprocess.run(
            [python, "setup.py", "-q", "build_ext", "--build-lib", lib, "--build-temp", temp],
            cwd=ROOT, env=environment, check=True,
        )  # fmt: skip
        shutil.copytree(lib / "pecker_fast", folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="python3", help="of the version over there")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists() and not (out / "commit").is_file():
        raise SystemExit(f"{out}: is there and was not made by this script; name another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True)
    (out / "commit").write_text(commit.stdout)
    site(arguments.python, out / "site")
    modules(arguments.python, out / "modules")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 2**20:.1f} MiB; expected at most {MOST_BYTES / 2**20:.0f}")
    return 0 if total <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
