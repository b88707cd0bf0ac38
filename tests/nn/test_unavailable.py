"""Where the fused operations cannot run they say why and leave the work to the reference."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pecker_fast import backends
from pecker_fast.nn import operations, reference


@pytest.fixture(autouse=True)
def _ask_anew():
    operations._unavailable.cache_clear()
    yield
    operations._unavailable.cache_clear()


def test_on_a_cpu(monkeypatch):
    monkeypatch.setattr(backends, "on_host", lambda: ())
    assert "run on CUDA devices (TRITON_INTERPRET=1" in operations.unavailable("cpu")
    x = torch.randn(2, 4, 3, 3)
    assert not operations.runs_triton(x)
    expected = reference.group_norm(x, x[0, :, 0, 0], x[0, :, 0, 1], 2, 1e-5)
    actual = operations.group_norm(x, x[0, :, 0, 0], x[0, :, 0, 1], 2, 1e-5)
    assert torch.equal(actual.y, expected.y)


def test_on_another_device():
    assert "not on 'meta'" in operations.unavailable("meta")
    x = torch.empty(2, 4, 3, 3, device="meta")
    assert operations.residual_add(x, [x]).shape == x.shape


def test_without_triton():
    """The operations import, compute and say what to install."""
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import torch; from pecker_fast.nn import operations\n"
        "x, one = torch.ones(1, 2, 2, 2), torch.ones(2)\n"
        "operations.residual_add(x, [operations.group_norm(x, one, one, 1, 1e-5).y])\n"
        "print(operations.unavailable('cpu'))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "triton cannot be imported" in result.stdout
    assert "pip install 'pecker-fast[triton]'" in result.stdout
