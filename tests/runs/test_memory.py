"""What a run says of memory that ran out."""

import pytest
import torch

from pecker_fast.distill import PeckerConfig
from pecker_fast.errors import PeckerError
from pecker_fast.runs import memory


@pytest.mark.parametrize("fixed, per_image, batch", [(0, 10, 20), (40, 3, 32), (70, 1, 64)])
@pytest.mark.parametrize("reached", [0.5, 0.9, 1.0])
def test_the_share_that_fits_is_an_upper_bound(monkeypatch, fixed, per_image, batch, reached):
    # A device of 100 GiB, full at some moment before the peak of fixed + per_image x batch.
    gib, peak = 2**30, fixed + per_image * batch
    used = min(100 * reached, peak)
    asked = max(100.5 - used, 0.1) if used < 100 else 1
    states = iter([100 * gib, int((100 - used) * gib)])
    monkeypatch.setattr(memory, "free_bytes", lambda: next(states))
    error = torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {asked:.2f} GiB.")
    with (
        pytest.raises(PeckerError, match=r"at most ([\d.]+)% of that fits") as refused,
        memory.naming_settings(PeckerConfig(batch_size=batch)),
    ):
        raise error
    share = float(str(refused.value).split("at most ")[1].split("%")[0]) / 100
    assert share < 1 and share * batch >= (100 - fixed) / per_image - 0.1


def test_what_is_not_known_is_not_said(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    with pytest.raises(PeckerError, match="lower batch_size") as refused:
        with memory.naming_settings(PeckerConfig()):
            raise MemoryError
    assert "fits" not in str(refused.value)
