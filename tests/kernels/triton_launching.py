"""What the tests of raw Triton launches share: the device, tables of addresses, comparison."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "no CUDA device: needs TRITON_INTERPRET=1 from the start of the process",
        allow_module_level=True,
    )

SLOTS = 1024  # a launch's block in these tests, so that small tensors have several


def address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def table(rows):
    return torch.tensor(rows, dtype=torch.int64, device=DEVICE)


def blocks(sizes, per_block=SLOTS):
    """(B, 2) int32 work list over rows of these sizes."""
    pairs = [(row, c) for row, size in enumerate(sizes) for c in range(-(-size // per_block))]
    return torch.tensor(pairs, dtype=torch.int32, device=DEVICE).reshape(-1, 2)


def bits(tensor):
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().cpu().contiguous().view(width)


def assert_same(actual, expected, name=""):
    """Bit for bit, except that one NaN is as good as another."""
    if isinstance(expected, np.ndarray):
        expected = torch.from_numpy(np.ascontiguousarray(expected))
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.isnan(), expected.isnan()), name
    number = ~expected.isnan()
    assert torch.equal(bits(actual)[number], bits(expected)[number]), name


def spoil(values, rng):
    """Put what breaks careless kernels at random places: zeros, denormals, infinities, NaN."""
    nasty = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -3e-39, 65519.0, 65520.0, 3e38]
    places = rng.permutation(len(values))[: max(1, len(values) // 7)]
    values[places] = rng.choice(nasty, len(places))
    return values


def misaligned(tensor):
    """The same values at an address that is a multiple of the element's size and no more."""
    moved = torch.empty(len(tensor) + 1, dtype=tensor.dtype, device=tensor.device)[1:]
    return moved.copy_(tensor)
