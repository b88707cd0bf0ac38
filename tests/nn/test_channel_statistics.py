"""Statistics that tensors carry along: taken once, right, and never used after a change."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from pecker_fast.nn import operations

# The interpreter's exp of what is not an element: nothing is stored of it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def activations(device, *, samples=2, channels=8) -> torch.Tensor:
    x = torch.randn(samples, channels, 5, 7, device=device) * 3 + 1
    return x.contiguous(memory_format=torch.channels_last)


def norm(x, skip=None, **options):
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    weight, bias = torch.ones(channels, device=x.device), torch.zeros(channels, device=x.device)
    return operations.group_norm(x, weight, bias, 2, 1e-5, skip=skip, **options)


def expected(x):
    return F.silu(F.group_norm(x.double(), 2, eps=1e-5)).float()


@pytest.fixture
def passes(device, monkeypatch) -> list[torch.Tensor]:
    """The tensors that were read for their statistics alone."""
    from pecker_fast.kernels import channels_last

    read = []
    launch = channels_last.statistics
    monkeypatch.setattr(
        channels_last, "statistics", lambda x, out: read.append(x) or launch(x, out)
    )
    return read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_residual_sum_are_those_of_its_values(dtype, device, passes, small_tiles):
    from pecker_fast.nn import fused

    out = operations.residual_add(activations(device).to(dtype), [activations(device).to(dtype)])
    partials = fused.channel_statistics(out)
    assert passes == []
    del out._pecker_channel_statistics
    again = fused.channel_statistics(out)
    assert len(passes) == 1
    assert torch.equal(partials, again)  # of the rounded values, in the same order


def test_means_are_rounded_once(device):
    """Also where the sum of a chunk is not exact: 1000 pixels around 1000."""
    from pecker_fast.nn import fused

    x = torch.randn(1, 8, 40, 25, device=device) + 1000
    partials = fused.channel_statistics(x.contiguous(memory_format=torch.channels_last))
    rows = x.double().view(8, -1).split(1024 if x.is_cpu else 128, dim=1)
    half_ulp = 2.0**-15 * 1.01  # of numbers up to 1024; the correction is rounded as well
    for (mean, squares), values in zip(partials[0].double(), rows, strict=True):
        assert (mean - values.mean(dim=1)).abs().max() <= half_ulp
        wanted = values.var(dim=1, correction=0) * values.shape[1]
        torch.testing.assert_close(squares, wanted, rtol=1e-5, atol=0)


def test_squares_about_a_centre_that_is_apart_do_not_cancel(device, small_tiles):
    """The centre is the mean of a chunk's first four pixels, which are 0; the others are 1000."""
    from pecker_fast.nn import fused

    x = torch.randn(2, 32, 4, 4, device=device) + 1000
    x[:, :, 0] = 0
    partials = fused.channel_statistics(x.contiguous(memory_format=torch.channels_last))
    assert partials.shape == (2, 1, 2, 32)
    mean, squares = partials.double()[:, 0].unbind(1)
    values = x.double().flatten(2)
    torch.testing.assert_close(mean, values.mean(dim=2), rtol=2e-7, atol=0)
    wanted = values.var(dim=2, correction=0) * 16
    torch.testing.assert_close(squares, wanted, rtol=1e-6, atol=0)


def test_are_taken_once(device, passes):
    x, skip = activations(device), activations(device)
    first = norm(x)
    norm(first.x, skip)
    norm(x, skip)
    assert [t.data_ptr() for t in passes] == [x.data_ptr(), skip.data_ptr()]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_go_along_with_the_returned_inputs(requires_grad, device, passes):
    x, skip = activations(device), activations(device)
    x.requires_grad_(requires_grad)
    result = norm(x, skip)
    out = operations.residual_add(result.y[:, :8], [result.x])
    count = len(passes)
    norm(result.x, out)
    norm(result.skip)
    assert len(passes) == count == 2


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_change_in_place_makes_them_void(requires_grad, device):
    hidden = activations(device).requires_grad_(requires_grad)
    out = operations.residual_add(hidden, [activations(device)])
    out.mul_(3).sub_(7)
    torch.testing.assert_close(norm(out).y, expected(out))
    out.detach()[0] = 1.5  # by way of another tensor
    torch.testing.assert_close(norm(out).y, expected(out))


def test_a_change_of_a_returned_input_makes_them_void(device):
    x = activations(device)
    result = norm(x)
    x.add_(torch.arange(8.0, device=device)[None, :, None, None])
    torch.testing.assert_close(norm(result.x).y, expected(x))


def test_other_values_by_data(device):
    x = activations(device)
    norm(x)
    x.data = activations(device) * 2
    torch.testing.assert_close(norm(x).y, expected(x))


def test_a_copy_that_is_changed_has_its_own(device):
    x = activations(device)
    norm(x)
    y = copy.deepcopy(x)
    y.mul_(torch.arange(8.0, device=device)[None, :, None, None])
    torch.testing.assert_close(norm(y).y, expected(y))
    torch.testing.assert_close(norm(x).y, expected(x))


def test_slices_and_views_do_not_inherit_them(device):
    x = activations(device, samples=3)
    norm(x)
    torch.testing.assert_close(norm(x[1:]).y, expected(x[1:]))
    torch.testing.assert_close(norm(x.view(3, 8, 7, 5)).y, expected(x.view(3, 8, 7, 5)))


def test_inference_tensors_carry_none(device, passes):
    with torch.inference_mode():
        x = activations(device)
        norm(x)
        x.mul_(2).add_(1)  # no version counter tells of this
        torch.testing.assert_close(norm(x).y, expected(x))
    assert len(passes) == 2


def test_live_as_long_as_their_tensor(device):
    import weakref

    from pecker_fast.nn import fused

    x = activations(device)
    partials = weakref.ref(fused.channel_statistics(x))
    assert partials() is not None
    del x
    assert partials() is None


@pytest.mark.parametrize("capturing", [False, True])
def test_a_graph_reads_none_taken_outside_of_it(capturing, device, passes, monkeypatch):
    """A captured launch list replays; what was taken once outside would stay as it was."""
    from pecker_fast.nn import fused

    x = activations(device)
    monkeypatch.setattr(fused, "_state", lambda t: (t._version, t.data_ptr(), False))
    norm(x)
    monkeypatch.setattr(fused, "_state", lambda t: (t._version, t.data_ptr(), capturing))
    norm(x)
    assert len(passes) == 1 + capturing
