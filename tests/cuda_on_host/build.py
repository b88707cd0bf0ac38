"""Compile csrc/cuda for the CPU: python tests/cuda_on_host/build.py."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# Traps on undefined behaviour, misaligned vector accesses among it. -O1: a build is short.
FLAGS = (
    "-std=c++17 -O1 -fPIC -ffp-contract=off -fvisibility=hidden -DPECKER_CUDA_ON_HOST "
    "-fsanitize=undefined -fsanitize-undefined-trap-on-error "
    "-Wall -Wextra -Werror -Wno-unknown-pragmas"
).split()


def compiler() -> str | None:
    """A C++ compiler, or None."""
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def build(folder: Path = ROOT / "build" / "cuda_on_host") -> Path:
    """Compile the module, if the sources are newer than what is there; return its path.

    Raises:
        subprocess.CalledProcessError: the compiler refused.
    """
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc/cuda/bind.cpp"]
    inputs = [*(ROOT / "csrc").rglob("*.*"), *HERE.iterdir()]
    if module.exists() and all(p.stat().st_mtime < module.stat().st_mtime for p in inputs):
        return module
    folder.mkdir(parents=True, exist_ok=True)
    cxx = compiler()
    assert cxx is not None
    includes = [ROOT / "csrc", ROOT / "csrc" / "cuda", HERE, pybind11.get_include()]
    options = [f"-I{path}" for path in [*includes, sysconfig.get_paths()["include"]]]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.name}.o"
        command = [cxx, *FLAGS, *options, "-x", "c++", "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    part = folder / f"{module.name}.part"
    subprocess.run([cxx, "-shared", *objects, "-o", str(part)], check=True)
    part.replace(module)
    return module


if __name__ == "__main__":
    print(build() if compiler() else "no C++ compiler")
