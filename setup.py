"""Build pecker_fast._C, the compiled module: pybind11, C++17, OpenMP. No torch at build time.

A machine without a C++ compiler gets a working installation on the `reference` backend; the
reason is kept in pecker_fast/_build_report.json and shown by `pecker-fast info`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("**/*.cpp"))
# -ffp-contract=off: no fused multiply-add behind our back, so that scalar, AVX2 and AVX-512 code
# give the same bits. No -ffast-math: it replaces division and sqrt. What is relaxed (errno, traps)
# changes no value and lets sqrt and comparisons vectorize.
CXX_FLAGS = (
    "-std=c++17 -O3 -fPIC -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math"
    " -fvisibility=hidden -Wall -Wextra"
)
LINK_FLAGS = "-shared -fopenmp"


class BuildExtension(build_ext):
    """Compile with ninja where it is present, one source after the other where it is not."""

    def build_extension(self, ext: Extension) -> None:
        """Build, or leave the reason why not beside the package."""
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        report = {"cpu": "built"}
        try:
            compile_module(ext.sources, output, work)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            output.unlink(missing_ok=True)  # an older build must not pass for this one
            report["cpu"] = f"the C++ build failed at installation: {error}"
            print(f"pecker_fast: {report['cpu']}", file=sys.stderr)
            print("pecker_fast: only the `reference` backend is installed", file=sys.stderr)
        (output.parent / "_build_report.json").write_text(json.dumps(report) + "\n")

    def get_outputs(self) -> list[str]:
        """What was built: setuptools asks, and takes a missing file for an error."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """Tolerate an extension that was not built (editable installs)."""
        build_py = self.get_finalized_command("build_py")
        package = Path(build_py.get_package_dir("pecker_fast"))
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
            (package / built.name).unlink(missing_ok=True)
            for path in (built, built.parent / "_build_report.json"):
                if path.exists():
                    self.copy_file(str(path), str(package / path.name))


def compile_module(sources: list[str], output: Path, work: Path) -> None:
    """Compile `sources` and link them into `output`.

    Raises:
        ImportError: no pybind11.
        OSError: no compiler or no Python headers.
        subprocess.CalledProcessError: the compiler refused.
    """
    import pybind11

    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    cxx = next((path for name in names if name and (path := shutil.which(name))), None)
    if cxx is None:
        raise OSError("no C++ compiler on the PATH; on Debian: apt install g++")
    python = sysconfig.get_paths()["include"]
    if not Path(python, "Python.h").exists():
        raise OSError(f"no Python.h in {python}; on Debian: apt install python3-dev")
    includes = f"-I{python} -I{pybind11.get_include()} -I{ROOT / 'csrc'}"
    objects = {source: work / (source.replace("/", "_") + ".o") for source in sources}
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if ninja is None:
        for source, target in objects.items():
            command = [cxx, *CXX_FLAGS.split(), *includes.split(), "-c", str(ROOT / source)]
            subprocess.run([*command, "-o", str(target)], check=True)
        linked = [str(target) for target in objects.values()]
        subprocess.run([cxx, *linked, *LINK_FLAGS.split(), "-o", str(output)], check=True)
        return
    lines = [
        "rule cxx",
        f"  command = {cxx} {CXX_FLAGS} {includes} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} $in {LINK_FLAGS} -o $out",
    ]
    lines += [f"build {target}: cxx {ROOT / source}" for source, target in objects.items()]
    lines += [f"build {output}: link {' '.join(map(str, objects.values()))}", ""]
    (work / "build.ninja").write_text("\n".join(lines))
    subprocess.run([ninja, "-C", str(work)], check=True)


setup(
    ext_modules=[Extension("pecker_fast._C", sources=SOURCES)],
    cmdclass={"build_ext": BuildExtension},
)
