from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pecker_fast.runs.rows import Rows


@dataclass(frozen=True)
class Inner(Rows):
    a: Tensor
    b: Tensor | None = None


@dataclass(frozen=True)
class Outer(Rows):
    first: Tensor
    inner: Inner
    nothing: Tensor | None
    last: Tensor


@pytest.fixture
def batch():
    return Outer(torch.arange(4), Inner(torch.arange(8).view(4, 2)), None, -torch.arange(4))


def test_rows_are_taken_from_every_tensor(batch):
    assert len(batch) == 4
    for rows in (slice(1, 3), torch.tensor([1, 2])):
        part = batch[rows]
        assert part.first.tolist() == [1, 2] and part.last.tolist() == [-1, -2]
        assert part.inner.a.tolist() == [[2, 3], [4, 5]]
        assert part.nothing is part.inner.b is None


def test_tensors_go_back_where_they_came_from(batch):
    tensors = batch.tensors()
    assert tensors == [batch.first, batch.inner.a, batch.last]
    others = [tensor + 1 for tensor in tensors]
    again = batch.with_tensors(others)
    assert all(ours is theirs for ours, theirs in zip(again.tensors(), others, strict=True))
