"""The operators of torch: schemas that tell the truth, and the results of the backends."""

from __future__ import annotations

import pytest
import torch
from oracle import bits

from pecker_fast.backends.operators import SCHEMAS

pytest.importorskip("expecttest")  # which opcheck needs


def make(device, dtype=torch.float32):
    """Tensors of several layouts, the positions of some of their entries, and vectors."""
    generator = torch.Generator().manual_seed(8)
    dense = [
        torch.randn(5, 8, generator=generator),
        torch.randn(6, 4, generator=generator).t(),
        torch.randn(7, generator=generator),
    ]
    dense = [tensor.to(dtype).to(device) for tensor in dense]
    indices = [
        torch.arange(0, dense[0].numel(), 3, dtype=torch.int32, device=device),
        torch.arange(1, dense[1].numel(), 2, dtype=torch.int32, device=device),
        None,
    ]
    sizes = [t.numel() if i is None else i.numel() for t, i in zip(dense, indices, strict=True)]
    vectors = [torch.randn(size, generator=generator).to(device) for size in sizes]
    return dense, indices, vectors


def step_arguments(device, dtype=torch.float32):
    dense, indices, vectors = make(device, dtype)
    grads = [torch.randn_like(tensor) for tensor in dense]
    indices[2] = torch.tensor([0, 3, 6], dtype=torch.int32, device=device)
    moments = [vector[: i.numel()] for vector, i in zip(vectors, indices, strict=True)]
    start = torch.zeros_like(indices[1])
    start[::2] = 2
    low = 4 if dtype in (torch.bfloat16, torch.float16) else 0
    masters = [t.reshape(-1)[i.long()].float() for t, i in zip(dense, indices, strict=True) if low]
    return [
        dense,
        grads,
        [moments[0].clone(), moments[1].clone()],
        [moment.square() for moment in moments],
        [moments[0].square() * 2],
        masters,
        [None, start, None],
        [torch.tensor(3.0), torch.tensor(4.0), torch.tensor(0.0)],
        indices,
        [1 + 2 + low, 1 + low, low],
        [0, 1, 2],
        [0.1, 0.9, 0.99, 1e-8, 0.1, -1.0, 0.0, 1.0,
         0.0, 0.9, 0.99, 1e-8, 0.0, 0.5, 1.0, 0.0,
         0.1, 0.0, 0.99, 1e-8, 0.0, -1.0, 0.0, 0.0],
        [None, None, None, torch.tensor(0.01), *[None] * 5],
        torch.tensor(2.0),
        torch.tensor(0.0),
    ]  # fmt: skip


def arguments_of(name, device):
    dense, indices, vectors = make(device)
    return {
        "masked_adamw": lambda: step_arguments(device),
        "gather_salient": lambda: [dense, indices, vectors, True],
        "scatter_salient": lambda: [dense, indices, vectors],
        "swap_salient": lambda: [dense, indices, vectors],
        "norm_salient": lambda: [vectors],
        "ema_salient": lambda: [vectors, dense, indices, 0.75],
    }[name]()


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_tell_the_truth(backend, name):
    """What is changed, what a traced call returns, and that traced and real calls agree."""
    operator = getattr(torch.ops.pecker_fast, name).default
    arguments = arguments_of(name, backend.device)
    torch.library.opcheck(operator, tuple(arguments), {"backend": backend.name})


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name != "masked_adamw"])
def test_operators_are_the_backends_functions(backend, name):
    direct, called = (arguments_of(name, backend.device) for _ in range(2))
    function = getattr(backend.module, name if name == "norm_salient" else f"{name}_")
    expected = function(*direct)
    found = getattr(torch.ops.pecker_fast, name)(*called, backend=backend.name)
    for a, b in zip(flat([direct, expected]), flat([called, found]), strict=True):
        assert torch.equal(bits(a), bits(b))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flat(item)]
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_step_agrees_with_the_reference(backend, dtype):
    """With every kind of state, start counts, two layouts and a learning rate that is a tensor."""
    ends = []
    for name in ("reference", backend.name):
        torch.manual_seed(1)
        arguments = step_arguments(backend.device, dtype)
        if dtype == torch.float64:
            for column in (2, 3, 4):
                arguments[column] = [tensor.double() for tensor in arguments[column]]
        for _ in range(3):  # the same tensors again, then others in their place
            torch.ops.pecker_fast.masked_adamw(*arguments, backend=name)
        arguments[3] = [tensor.clone() for tensor in arguments[3]]
        torch.ops.pecker_fast.masked_adamw(*arguments, backend=name)
        ends.append(arguments)
    assert [float(step) for step in ends[1][7]] == [7.0, 8.0, 4.0]
    for a, b in zip(flat(ends[0]), flat(ends[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_nothing_is_remembered_of_tensors_that_are_gone(backend):
    from pecker_fast.backends import operators

    arguments = step_arguments(backend.device)
    torch.ops.pecker_fast.masked_adamw(*arguments, backend=backend.name)
    assert arguments[3][0] in operators._known
    before = len(operators._known)
    arguments[3] = None  # an optimizer goes, its model stays
    assert len(operators._known) == before - 1
