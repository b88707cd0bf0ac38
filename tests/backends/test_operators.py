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


def arguments_of(name, device):
    dense, indices, vectors = make(device)
    return {
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


@pytest.mark.parametrize("name", SCHEMAS)
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
