"""The built pecker_fast._cuda: what it needs, what it holds, how it fails without a driver."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pecker_fast import backends

TARGETS = {"80", "86", "89", "90", "100", "120"}  # of a recent nvcc; an older one knows fewer


@pytest.fixture(scope="module")
def module():
    reason = backends._why_not_built("cuda")
    if reason is not None:
        pytest.skip(f"pecker_fast._cuda: {reason}")
    return importlib.import_module("pecker_fast._cuda")


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
        module.pick(0, 0, 0, 1, 0, 0)


def test_types_without_a_kernel_are_refused(module):
    """A float64 parameter with a bfloat16 gradient."""
    with pytest.raises(RuntimeError, match="masked_adamw: no kernel for this combination of types"):
        module.masked_adamw(1, 2, False, 0, 0, 0, 0, 1, 0, 0, 0, 0)


def test_holds_code_for_every_target(module):
    triton = pytest.importorskip("triton", reason="cuobjdump comes with Triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    listed = subprocess.run(
        [str(tool), "-lelf", "-lptx", module.__file__], capture_output=True, text=True, check=True
    ).stdout
    found = set(re.findall(r"\.sm_(\d+)\.cubin", listed))
    assert "80" in found
    assert found <= TARGETS
    assert re.search(r"\.sm_80\.ptx|compute_80", listed)
