"""Where the fused operations are tested: on the GPU, else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from pecker_fast.nn import operations


@pytest.fixture
def device() -> torch.device:
    """Of the activations. Skips the test with the reason where no kernel can run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = operations.unavailable(device)
    # `make test-gpu` must not pass by skipping what it is there to test.
    if device.type == "cpu" and os.environ.get("PECKER_REQUIRE_GPU") == "1":
        pytest.fail("PECKER_REQUIRE_GPU=1, but there is no CUDA device")
    if reason is not None:
        pytest.skip(reason)
    return device


@pytest.fixture
def on_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused modules on plain torch operations: what is tested does not depend on the kernels."""
    monkeypatch.setattr(operations, "unavailable", lambda device: None)
    monkeypatch.setattr(operations, "runs_triton", lambda x: False)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, torch's convolutions otherwise round float32 to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def small_tiles(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs for small tensors: chunks of 4 times 4 pixels, blocks of 16 channels, loops."""
    from pecker_fast.kernels import channels_last, group_norm

    monkeypatch.setattr(channels_last, "_MOST_PIXELS", 4)
    monkeypatch.setattr(channels_last, "_ENOUGH_CHUNKS", 1)
    monkeypatch.setattr(channels_last, "_MOST_CHANNELS", 16)
    monkeypatch.setattr(group_norm, "_GROUP_ELEMENTS", 32)
