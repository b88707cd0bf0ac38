"""The benchmarks are scripts that import each other by name."""

from pathlib import Path

import pytest
import torch

# torch collects the functions that `with torch.device` redirects at its first use: let that be
# before `torch.empty` is replaced by one that poisons, or the meta device allocates real memory.
with torch.device("meta"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
