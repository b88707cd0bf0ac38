"""The built pecker_fast._cuda: what it needs, what it holds, how it fails without a driver."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from pecker_fast import backends

SOURCES = sorted((Path(__file__).resolve().parents[2] / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
TARGETS = {"80", "86", "89", "90", "100", "120"}  # of a recent nvcc; an older one knows fewer
# Registers of the step's variants in fp32: plain, with a GradScaler's scale, with everything. 48
# let five blocks of 256 threads share an SM, 64 four, 80 three. float16, newer targets:
# `blocks_per_sm`.
STEP_REGISTERS = {"0": 48, "1": 64, "2": 80}
NEWER_STEP_REGISTERS = {"0": 64, "1": 72, "2": 96}


@pytest.fixture(scope="module")
def module():
    reason = backends._why_not_built("cuda")
    if reason is not None:
        pytest.skip(f"pecker_fast._cuda: {reason}")
    return importlib.import_module("pecker_fast._cuda")


def cuobjdump(file: Path | str, *options: str) -> str:
    """What NVIDIA's tool says of a module or a cubin."""
    triton = pytest.importorskip("triton", reason="cuobjdump comes with Triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [str(tool), *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_it_is_not_the_one_for_tests(module):
    assert module.on_host is False


def test_needs_no_library_of_cuda(module):
    """The runtime is linked statically and the driver looked for only when it is used."""
    loaded = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True)
    assert "libcuda" not in loaded.stdout
    assert "not found" not in loaded.stdout


def test_imports_alone(module):
    """Without torch, which would load CUDA libraries of its own."""
    code = f"import sys; sys.path.insert(0, {str(Path(module.__file__).parent)!r}); import _cuda"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_a_launch_is_a_clear_error(module):
    assert module.device_count() == 0
    with pytest.raises(RuntimeError, match=r"^pick: .*driver.* \(CUDA error \d+\)$"):
        module.pick(0, 0, 0, 1, 0)


def test_types_without_a_kernel_are_refused(module):
    """A float64 parameter with a bfloat16 gradient."""
    with pytest.raises(RuntimeError, match="masked_adamw: no kernel for this combination of types"):
        module.masked_adamw(1, 2, False, 0, 0, 0, 0, 1, 0, 0, 0)


# ---- what nvcc made of it


def test_holds_code_for_every_target(module):
    listed = cuobjdump(module.__file__, "-lelf", "-lptx")
    found = set(re.findall(r"\.sm_(\d+)\.cubin", listed))
    assert "80" in found
    assert found <= TARGETS
    assert re.search(r"\.sm_80\.ptx|compute_80", listed)


def resources(file: Path | str) -> list[tuple[str, str, dict[str, int]]]:
    """Target, mangled name and use of registers, stack and local memory of every kernel."""
    found, target = [], ""
    pattern = r"arch = sm_(\d+)|Function (\S+):\s*(REG:.*)"
    for arch, name, usage in re.findall(pattern, cuobjdump(file, "-res-usage")):
        target = arch or target
        if name:
            numbers = re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)
            found.append((target, name, {key: int(value) for key, value in numbers}))
    return found


def test_nothing_spills_on_any_target(module):
    kernels = resources(module.__file__)
    assert [k for k in kernels if k[2]["STACK"] or k[2]["LOCAL"]] == []
    counts = Counter(target for target, _, _ in kernels)
    assert min(counts.values()) == max(counts.values()) > 40
    steps = Counter()
    for target, name, usage in kernels:
        if step := re.search(r"masked_adamw_kernelILNS\S*7VariantE([012])Ef", name):
            most = STEP_REGISTERS if int(target) < 100 else NEWER_STEP_REGISTERS
            half = step[1] == "0" and "EfNS_7Float16" in name
            assert usage["REG"] <= (64 if half else most[step[1]]), (target, name)
            steps[step[1]] += 1
    assert steps == dict.fromkeys(STEP_REGISTERS, 7 * len(counts))


# What a warp spends on 512 scores, loops over rows being unrolled: instructions of the pipe for
# integers, comparisons and logic, which issues half a warp a cycle. Above 400 this pipe, not
# memory, would be the limit by that count.
ALU = r"(?:I|F|VI)?(?:SETP|ADD3?|SEL|MNMX)|LOP3|PLOP3|SHF|LEA|PRMT|P2R|R2P"
MOST_ALU = 260


@pytest.fixture(scope="module")
def sass(module):
    """Of each kernel: its mangled name, then its instructions for sm_90."""
    return cuobjdump(module.__file__, "-arch", "sm_90", "-sass").split("Function : ")[1:]


def test_topk_is_not_made_of_integer_instructions(sass):
    found = {}
    for part in sass:
        name = re.search(r"(collect|write)_kernelIfE", part.partition("\n")[0])
        if name:
            instructions = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ )?(\w+)", part)
            alu = [one for one in instructions if re.fullmatch(ALU, one)]
            found[name[1]] = (len(instructions), len(alu))
    assert found.keys() == {"collect", "write"}
    assert all(total > 400 and 200 < alu <= MOST_ALU for total, alu in found.values()), found


def test_the_update_waits_for_what_advance_writes(sass):
    """From sm_90 on it is launched while `advance` runs. What that writes is no constant memory."""
    kernels = {part.partition("\n")[0]: part for part in sass}
    updates = [part for name, part in kernels.items() if "masked_adamw_kernel" in name]
    assert len(updates) == 24
    for part in updates:
        before, found, after = part.partition("ACQBULK")
        assert found and "LDG" in before and re.search(r"LDG\.E\.64 ", after)
    triggers = [name for name, part in kernels.items() if "PREEXIT" in part]
    assert len(triggers) == 2 and all("advance_kernel" in name for name in triggers)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_a_spill_would_be_seen(tmp_path):
    """The check itself: a kernel that keeps an array in local memory does not pass."""
    source, cubin = tmp_path / "spill.cu", tmp_path / "spill.cubin"
    source.write_text(
        "__global__ void k(int* p, int n) { int a[64]; for (int i = 0; i < 64; ++i) a[i] = p[i];"
        " for (int i = 0; i < n; ++i) p[i] = a[p[i] % 64]; }"
    )
    command = [NVCC, "-O3", "-arch=sm_90", "-cubin", str(source), "-o", str(cubin)]
    subprocess.run(command, check=True)
    ((_, _, usage),) = resources(cubin)
    assert usage["STACK"] or usage["LOCAL"]


@pytest.fixture(scope="module")
def ptx(module):
    """Mangled name of a kernel -> its PTX for the oldest target."""
    parts = re.split(r"\.entry (\w+)", cuobjdump(module.__file__, "-ptx"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_arithmetic_is_ieee(ptx):
    """No contraction, no approximation, no flushed denormals: the bits are the CPU's."""
    assert len(ptx) > 40
    for name, text in ptx.items():
        for forbidden in ("fma.", ".approx", ".ftz"):
            assert forbidden not in text, f"{forbidden} in {name}"
    steps = "".join(text for name, text in ptx.items() if "masked_adamw" in name)
    assert "sqrt.rn.f32" in steps and "div.rn.f32" in steps


def test_compute_sanitizer_knows_our_kernels_by_name(ptx):
    """tests/test_gpu.py has it check those of this name alone."""
    assert [name for name in ptx if "pecker" not in name] == []


def test_memory_is_known_to_be_global(ptx):
    """Addresses come from tables; a generic access would have to find out what they point to."""
    for name, text in ptx.items():
        generic = re.findall(r"^\s*(?:@%p\d+ )?(?:ld|st)\.(?!global|param|shared)\S+", text, re.M)
        assert not generic, f"{name}: {generic[:3]}"


def test_whole_tensors_are_read_and_written_16_bytes_at_a_time(ptx):
    # p, g and two moments; p and the moments written, the gradient where a GradScaler asks for it.
    for variant, stores in ("0", 3), ("1", 4):
        (body,) = (text for name, text in ptx.items() if f"VariantE{variant}EfffE" in name)
        assert len(re.findall(r"ld\.global\S*\.v4", body)) == 4
        assert len(re.findall(r"st\.global\S*\.v4", body)) == stores


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_a_warning(source, tmp_path):
    command = [
        NVCC, "-std=c++17", "-O3", "-fmad=false", "-gencode=arch=compute_90,code=compute_90", "-c",
        "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra",
        str(source), "-o", str(tmp_path / "object.o"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
