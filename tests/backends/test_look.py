"""What the optimizer sees of parameters and gradients at every step, in C++ and in Python."""

from __future__ import annotations

import pytest
import torch

from pecker_fast.backends import work


@pytest.fixture(params=["compiled", "python"])
def look(request):
    if request.param == "python":
        return work._look
    if work._EXCHANGE is None:
        pytest.skip("pecker_fast._C is not built, or torch is older than 2.10")
    return work.look


def test_addresses(look):
    param = torch.nn.Parameter(torch.randn(4, 6))
    tensors = [param, param.detach()[1:], None, torch.empty(0), torch.tensor(1.0)]
    addresses, _ = look(tensors)
    start = param.data_ptr()
    assert addresses.tolist()[:4] == [start, start + 24, 0, 0]
    assert addresses[4] == tensors[4].data_ptr()
    assert look([])[0].tolist() == []


def test_layouts_are_equal_where_dtypes_shapes_and_strides_are(look):
    first = torch.randn(2, 4, 3, 3)
    changed = [
        None,
        first.double(),
        first.bfloat16(),
        first.to(memory_format=torch.channels_last),
        first.permute(0, 1, 3, 2),
        first[:, ::2],
        first[:1],
        first.flatten(),
    ]
    layouts = [look([first, other, first])[1] for other in changed]
    assert all(a != b for i, a in enumerate(layouts) for b in layouts[:i])
    again = [look([first + 1, other, first.clone()])[1] for other in changed]
    assert layouts == again


def test_what_the_table_does_not_know_goes_through_python():
    [address], layouts = work.look([torch.empty(3, device="meta")])
    assert address == 0 and layouts == [(torch.float32, (3,), (1,))]
    with pytest.raises(RuntimeError):
        work.look([torch.eye(3).to_sparse()])
