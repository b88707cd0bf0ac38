"""Every CUDA source compiles for every target without a warning, a spill or local memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
TARGETS = ["80", "86", "89", "90", "100", "120"]
# 64 registers let four blocks of 256 threads share an SM; more would halve the loads under way.
PLAIN_STEP_REGISTERS = 64

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc")]


def compile_report(source: Path, target: str, folder: Path) -> str:
    """What ptxas says of one source for one target."""
    command = [
        NVCC, "-std=c++17", "-O3", "-fmad=false", f"-arch=sm_{target}", "-cubin",
        "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra",
        "-Xptxas=-v,--warning-as-error,--warn-on-spills,--warn-on-local-memory-usage",
        str(source), "-o", str(folder / f"{source.stem}.cubin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def kernels_of(report: str) -> dict[str, tuple[int, int, int]]:
    """Mangled name -> registers, bytes of stack, bytes spilled."""
    found = {}
    for part in report.split("Compiling entry function '")[1:]:
        stack, stored, loaded = map(
            int,
            re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            ).groups(),
        )
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[part.partition("'")[0]] = registers, stack, stored + loaded
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", sorted(CUDA.glob("*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source, target, tmp_path):
    kernels = kernels_of(compile_report(source, target, tmp_path))
    assert kernels or source.stem == "device"
    for name, (registers, stack, spilled) in kernels.items():
        assert (stack, spilled) == (0, 0), name
        if "masked_adamw_kernelILb0Ef" in name:  # fp32 arithmetic, no extras
            assert registers <= PLAIN_STEP_REGISTERS, name


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """Name of source -> its PTX for compute_90."""
    folder = tmp_path_factory.mktemp("ptx")
    found = {}
    for source in sorted(CUDA.glob("*.cu")):
        target = folder / f"{source.stem}.ptx"
        command = [NVCC, "-std=c++17", "-O3", "-fmad=false", "-arch=compute_90", "-ptx"]
        subprocess.run([*command, str(source), "-o", str(target)], check=True)
        found[source.stem] = target.read_text()
    return found


def test_arithmetic_is_ieee(ptx):
    """No contraction, no approximation, no flushed denormals: the bits are the CPU's."""
    for name, text in ptx.items():
        for forbidden in ("fma.", ".approx", ".ftz"):
            assert forbidden not in text, f"{forbidden} in {name}"
    assert "sqrt.rn.f32" in ptx["adamw"]
    assert "div.rn.f32" in ptx["adamw"]


def test_memory_is_known_to_be_global(ptx):
    """Addresses come from tables; a generic access would have to find out what they point to."""
    for name, text in ptx.items():
        generic = re.findall(r"^\s*(?:@%p\d+ )?(?:ld|st)\.(?!global|param|shared)\S+", text, re.M)
        assert not generic, f"{name}: {generic[:3]}"


def test_whole_tensors_are_read_and_written_16_bytes_at_a_time(ptx):
    bodies = re.split(r"\.entry ", ptx["adamw"])
    (body,) = [b for b in bodies if b.startswith("_ZN6pecker") and "kernelILb0EfffE" in b[:200]]
    # p, g and two moments; the same written, the gradient where a GradScaler asks for it.
    assert len(re.findall(r"ld\.global\S*\.v4", body)) == 4
    assert len(re.findall(r"st\.global\S*\.v4", body)) == 4


def test_a_spill_would_be_seen(tmp_path):
    """The check itself: a kernel that keeps an array in local memory does not pass."""
    source = tmp_path / "spill.cu"
    source.write_text(
        "__global__ void k(int* p, int n) { int a[64]; for (int i = 0; i < 64; ++i) a[i] = p[i];"
        " for (int i = 0; i < n; ++i) p[i] = a[p[i] % 64]; }"
    )
    with pytest.raises(AssertionError, match=r"local|stack|spill"):
        compile_report(source, "90", tmp_path)
