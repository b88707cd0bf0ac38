"""Build the compiled modules: pecker_fast._C (C++, OpenMP) and pecker_fast._cuda (CUDA). No torch.

Each is optional. A machine without a C++ compiler or without nvcc gets a working installation on
the other backends; the reason is kept in pecker_fast/_build_report.json and shown by
`pecker-fast info`. PECKER_FAST_CUDA=0 leaves the CUDA module out, =1 makes its failure an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA = ROOT / "csrc" / "cuda"
CPU_SOURCES = sorted(p for p in (ROOT / "csrc").glob("**/*.cpp") if p.parent != CUDA)
CUDA_SOURCES = [*sorted(CUDA.glob("*.cu")), *sorted(CUDA.glob("*.cpp"))]
# -ffp-contract=off: no fused multiply-add behind our back, so that scalar, AVX2 and AVX-512 code
# and the CUDA kernels (-fmad=false) give the same bits. No fast-math: it replaces division and
# sqrt. What is relaxed (errno, traps) changes no value and lets sqrt and comparisons vectorize.
CXX_FLAGS = (
    "-std=c++17 -O3 -fPIC -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math"
    " -fvisibility=hidden -Wall -Wextra"
)
NVCC_FLAGS = "-std=c++17 -O3 -fmad=false -Xcompiler=-fPIC,-fvisibility=hidden"
# SASS for these, as far as nvcc knows them, and PTX of the first for all others.
TARGETS = ("80", "86", "89", "90", "100", "120")


class BuildExtension(build_ext):
    """Compile with ninja where it is present, one source after the other where it is not."""

    def build_extension(self, ext: Extension) -> None:
        """Build, or leave the reason why not beside the package."""
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        # In the source tree, so that a later installation compiles only what changed; pip's own
        # folder is new each time.
        work = ROOT / "build" / "objects" / f"{sys.implementation.cache_tag}-{ext.name}"
        work.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        backend, compile_it = {
            "pecker_fast._C": ("cpu", compile_cpu),
            "pecker_fast._cuda": ("cuda", compile_cuda),
        }[ext.name]
        reason = "built"
        try:
            compile_it(output, work)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            if backend == "cuda" and os.environ.get("PECKER_FAST_CUDA") == "1":
                raise
            output.unlink(missing_ok=True)  # an older build must not pass for this one
            reason = f"not built at installation: {error}"
            print(f"pecker_fast: backend {backend} {reason}", file=sys.stderr)
        path = output.parent / "_build_report.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**report, backend: reason}) + "\n")

    def get_outputs(self) -> list[str]:
        """What was built: setuptools asks, and takes a missing file for an error."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """Tolerate an extension that was not built (editable installs)."""
        build_py = self.get_finalized_command("build_py")
        package = Path(build_py.get_package_dir("pecker_fast"))
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
            if not built.exists():
                (package / built.name).unlink(missing_ok=True)
            for path in (built, built.parent / "_build_report.json"):
                if path.exists():  # replaced whole: what runs here goes on with the old one
                    partial = package / f"{path.name}.partial"
                    self.copy_file(str(path), str(partial))
                    partial.replace(package / path.name)


def compile_cpu(output: Path, work: Path) -> None:
    """Compile and link pecker_fast._C.

    Raises:
        ImportError: no pybind11.
        OSError: no compiler or no Python headers.
        subprocess.CalledProcessError: the compiler refused.
    """
    cxx, includes = host_compiler()
    rule = f"{cxx} {CXX_FLAGS} {includes} -MMD -MF $out.d -c $in -o $out"
    link = f"{cxx} $in -shared -fopenmp -o $out"
    build(work, output, link, [(source, rule) for source in CPU_SOURCES])


def compile_cuda(output: Path, work: Path) -> None:
    """Compile and link pecker_fast._cuda; the CUDA runtime is linked statically.

    Raises:
        ImportError, subprocess.CalledProcessError: as `compile_cpu`.
        OSError: as `compile_cpu`; no nvcc; switched off by PECKER_FAST_CUDA=0.
    """
    if os.environ.get("PECKER_FAST_CUDA") == "0":
        raise OSError("switched off by PECKER_FAST_CUDA=0")
    cxx, includes = host_compiler()
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None:
        raise OSError("no nvcc on the PATH or in $CUDA_HOME/bin; install the CUDA toolkit")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    targets = [cc for cc in TARGETS if f"sm_{cc}" in known.stdout.split()]
    codes = " ".join(f"-gencode=arch=compute_{cc},code=sm_{cc}" for cc in targets)
    codes += f" -gencode=arch=compute_{targets[0]},code=compute_{targets[0]}"
    cuda_rule = f"{nvcc} -ccbin {cxx} {NVCC_FLAGS} {codes} -MMD -MF $out.d -c $in -o $out"
    host_rule = f"{cxx} {CXX_FLAGS} {includes} -MMD -MF $out.d -c $in -o $out"
    root = Path(nvcc).resolve().parent.parent
    libraries = " ".join(f"-L{path}" for path in sorted(root.glob("**/libcudart_static.a")))
    libraries = libraries.replace("/libcudart_static.a", "")
    link = f"{cxx} $in -shared {libraries} -lcudart_static -lrt -ldl -lpthread -o $out"
    rules = {".cu": cuda_rule, ".cpp": host_rule}
    build(work, output, link, [(source, rules[source.suffix]) for source in CUDA_SOURCES])


def host_compiler() -> tuple[str, str]:
    """A C++ compiler and its -I options."""
    import pybind11

    # Not on the command line: where build isolation puts it changes each time, and ninja would
    # compile everything anew.
    before = os.environ.get("CPLUS_INCLUDE_PATH")
    os.environ["CPLUS_INCLUDE_PATH"] = os.pathsep.join(
        filter(None, (pybind11.get_include(), before))
    )
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    cxx = next((path for name in names if name and (path := shutil.which(name))), None)
    if cxx is None:
        raise OSError("no C++ compiler on the PATH; on Debian: apt install g++")
    python = sysconfig.get_paths()["include"]
    if not Path(python, "Python.h").exists():
        raise OSError(f"no Python.h in {python}; on Debian: apt install python3-dev")
    return cxx, f"-I{python} -I{ROOT / 'csrc'}"


def build(work: Path, output: Path, link: str, commands: list[tuple[Path, str]]) -> None:
    """Run a compile command per source, then `link`; $in and $out stand for the files."""
    objects = [work / f"{source.name}.o" for source, _ in commands]
    everything = " ".join(map(str, objects))
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if ninja is None:
        for (source, command), target in zip(commands, objects, strict=True):
            run(command.replace("$in", str(source)).replace("$out", str(target)))
        run(link.replace("$in", everything).replace("$out", str(output)))
        return
    lines = []
    for (source, command), target in zip(commands, objects, strict=True):
        rule = [f"rule {source.stem}_{source.suffix[1:]}", f"  command = {command}"]
        lines += [*rule, "  depfile = $out.d", "  deps = gcc"]
        lines.append(f"build {target}: {source.stem}_{source.suffix[1:]} {source}")
    lines += ["rule link", f"  command = {link}", f"build {output}: link {everything}", ""]
    (work / "build.ninja").write_text("\n".join(lines))
    subprocess.run([ninja, "-C", str(work)], check=True)


def run(command: str) -> None:
    """Run one command line."""
    subprocess.run(command.split(), check=True)


def names(paths: list[Path]) -> list[str]:
    """Paths as setuptools wants them: relative to this file."""
    return [str(path.relative_to(ROOT)) for path in paths]


def long_description() -> str:
    """README.md, for a page that is not beside its pictures and docs/.

    Relative links go to $PECKER_FAST_REPOSITORY, or to the repository whose GitHub Action this is;
    where neither is known, as on a laptop, they stay.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    repository = os.environ.get("PECKER_FAST_REPOSITORY")
    if repository is None and "GITHUB_REPOSITORY" in os.environ:
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        repository = f"{server}/{os.environ['GITHUB_REPOSITORY']}"
    if repository is None:
        return text
    base = repository.rstrip("/")

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({base}/{kind}/HEAD/{link['place']})"

    pattern = r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<place>(?![a-z]+:|#)[^)]+)\)"
    return re.sub(pattern, absolute, text)


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension("pecker_fast._C", sources=names(CPU_SOURCES)),
        Extension("pecker_fast._cuda", sources=names(CUDA_SOURCES)),
    ],
    cmdclass={"build_ext": BuildExtension},
)
