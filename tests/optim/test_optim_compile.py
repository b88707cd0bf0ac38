"""MaskedAdamW inside torch.compile: it runs as it is, between what is compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from oracle import bits

from pecker_fast.optim.adamw import MaskedAdamW


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(backend, release_grads):
    """A model and its optimizer, the same at each call."""
    generator = torch.Generator().manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.SiLU(), torch.nn.Linear(9, 4))
    for param in model.parameters():
        param.data = torch.randn(param.shape, generator=generator)
    model.to(backend.device)
    mask = {
        name: (torch.rand(param.shape, generator=generator) < 0.4).to(backend.device)
        for name, param in model.named_parameters()
    }
    options = {"mask": mask, "release_grads": release_grads, "backend": backend.name}
    return model, MaskedAdamW(model.named_parameters(), lr=1e-2, **options)


def iteration_of(model, optimizer):
    """A training step as a function of its inputs."""

    def iteration(inputs):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        if optimizer.releases_grads:
            optimizer.clip_grad_norm_(0.05)
        optimizer.step()

    return iteration


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["the step", "the whole iteration"])
@pytest.mark.parametrize("release_grads", [False, True])
def test_compiled_training_has_the_bits_of_eager(backend, release_grads, what):
    ends = []
    for compiled in (False, True):
        model, optimizer = make(backend, release_grads)
        iteration = iteration_of(model, optimizer)
        if compiled and what == "the step":
            step = optimizer.step
            optimizer.step = torch.compile(lambda step=step: step(), backend="eager")
        elif compiled:
            # Not a backend that makes kernels: they would round the gradients otherwise.
            iteration = torch.compile(iteration, backend="eager")
        for seed in range(3):
            inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
            iteration(inputs.to(backend.device))
        state = [value for kept in optimizer.state.values() for value in kept.values()]
        ends.append([*model.parameters(), *state])
    assert len(ends[0]) == 4 + 4 * 3
    for eager, compiled in zip(*ends, strict=True):
        assert torch.equal(bits(eager), bits(compiled))


def test_a_mask_replaced_in_compiled_code(backend):
    ends = []
    for compiled in (False, True):
        model, optimizer = make(backend, release_grads=False)
        mask = {name: torch.ones_like(param) > 0 for name, param in model.named_parameters()}

        def replace(optimizer=optimizer, mask=mask):
            optimizer.set_mask(mask, moments="carry")

        iteration = iteration_of(model, optimizer)
        iteration(torch.ones(5, 6, device=backend.device))
        (torch.compile(replace, backend="eager") if compiled else replace)()
        iteration(torch.ones(5, 6, device=backend.device))
        ends.append(list(model.parameters()))
    for eager, compiled in zip(*ends, strict=True):
        assert torch.equal(bits(eager), bits(compiled))


def test_importing_the_optimizer_imports_no_compiler():
    script = (
        "import sys, pecker_fast.optim; assert 'torch._dynamo' not in sys.modules, 'it is imported'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
