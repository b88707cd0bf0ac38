"""MaskedAdamW inside torch.compile: one operator in the graph, with the bits of the eager step."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from types import SimpleNamespace

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


def make_on_cpu():
    return make(SimpleNamespace(device="cpu", name="auto"), release_grads=False)


def iteration_of(model, optimizer):
    """A training step as a function of its inputs."""

    def iteration(inputs):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        if optimizer.releases_grads:
            optimizer.clip_grad_norm_(0.05)
        optimizer.step()

    return iteration


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


OPTIONS = {
    "default": {},
    "tensors": {"lr": 1e-2, "betas": (0.75, 0.5), "capturable": True},
    "no exp_avg": {"betas": (0.0, 0.9), "weight_decay": 0.1},
    "amsgrad, clipped": {"amsgrad": True, "clip_value": 0.1, "maximize": True},
}

# The defaults in all ways, the other options in pairs.
STEPS = [
    pytest.param(
        name, masked, compiler, id=f"{name}-{'masked' if masked else 'dense'}-{compiler}",
        marks=() if (name, compiler) == ("default", "eager") else pytest.mark.slow,
    )
    for name in OPTIONS for masked in (True, False) for compiler in ("eager", "aot_eager")
    if name == "default" or masked == (compiler == "aot_eager")
]  # fmt: skip


def options_of(name):
    """Fresh ones at each call."""
    options = dict(OPTIONS[name])
    if name == "tensors":
        options["lr"] = torch.tensor(options["lr"])
        options["betas"] = tuple(map(torch.tensor, options["betas"]))
    return options


def with_masters(device, options):
    """Two groups, one of them of bfloat16 parameters."""
    generator = torch.Generator().manual_seed(5)
    params, mask = [], {}
    for shape, dtype in (((6, 4), torch.float32), ((5,), torch.float32), ((8, 3), torch.bfloat16)):
        param = torch.randn(shape, generator=generator).to(dtype).to(device)
        params.append(torch.nn.Parameter(param))
        mask[params[-1]] = (torch.rand(shape, generator=generator) < 0.5).to(device)
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.3}]
    return params, mask, groups, options


@pytest.mark.parametrize(("name", "masked", "compiler"), STEPS)
def test_a_step_is_one_graph_with_the_bits_of_eager(backend, name, masked, compiler):
    """Also where masks, state, learning rate and gradients' presence change between two calls."""
    ends = []
    for compiled in (False, True):
        params, mask, groups, options = with_masters(backend.device, options_of(name))
        optimizer = MaskedAdamW(
            groups, **options, mask=mask if masked else None, backend=backend.name
        )
        step = optimizer.step
        if compiled:
            step = torch.compile(lambda step=step: step(), backend=compiler, fullgraph=True)

        def train(seed, step=step, params=params):
            generator = torch.Generator().manual_seed(seed)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(param)
            if seed == 1:
                params[0].grad = None
            step()

        for seed in range(3):
            train(seed)
        lr = optimizer.param_groups[0]["lr"]
        if isinstance(lr, torch.Tensor):
            lr.fill_(1e-3)
        else:
            optimizer.param_groups[0]["lr"] = 1e-3
        train(3)
        if masked:
            optimizer.set_mask({p: ~m for p, m in mask.items()}, moments="carry")
            train(4)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(5)
        state = optimizer.state[params[1]]
        state["exp_avg_sq"] = state["exp_avg_sq"].clone() * 2
        train(6)
        optimizer.step()  # and uncompiled again
        state = [value for kept in optimizer.state.values() for value in kept.values()]
        ends.append([*params, *state])
    for eager, compiled in zip(*ends, strict=True):
        assert torch.equal(bits(eager), bits(compiled))


def traced_arguments(optimizer):
    """Of the operator, for a step with all gradients."""
    columns = [], [], [], []
    for group in optimizer.param_groups:
        optimizer._init_group(group, *columns)
    params, grads, places, numbers = columns
    tensors = [optimizer.param_groups[0]["lr"], None, None] + [None] * 3
    return [params, grads, places, numbers[0], tensors, None, None]


def with_gradients(backend):
    params, mask, groups, options = with_masters(backend.device, {"lr": torch.tensor(1e-2)})
    for param in params:
        param.grad = torch.ones_like(param)
    return params, MaskedAdamW(groups, **options, mask=mask, backend=backend.name)


def test_the_operator_tells_the_truth(backend):
    pytest.importorskip("expecttest")
    _, optimizer = with_gradients(backend)
    arguments = traced_arguments(optimizer)
    torch.library.opcheck(torch.ops.pecker_fast.masked_adamw.default, tuple(arguments))


def test_copies_that_a_compiler_hands_over_are_stepped(backend):
    params, optimizer = with_gradients(backend)
    expected, eager = with_gradients(backend)
    arguments = traced_arguments(optimizer)
    arguments[0] = [param.detach() + 1 for param in params]
    arguments[1] = [grad * 2 for grad in arguments[1]]
    for param in expected:
        param.data.add_(1)
        param.grad.mul_(2)
    eager.step()
    torch.ops.pecker_fast.masked_adamw(*arguments)
    for given, own, right in zip(arguments[0], params, expected, strict=True):
        assert torch.equal(bits(given), bits(right))
        assert torch.equal(bits(own), bits(right))


def test_what_is_compiled_keeps_no_optimizer_alive():
    from pecker_fast.optim import traced

    _, optimizer = with_gradients(SimpleNamespace(device="cpu", name="auto"))
    traced_arguments(optimizer)
    number = id(optimizer)
    assert number in traced._live
    del optimizer
    gc.collect()
    assert number not in traced._live


def test_a_tensor_for_a_learning_rate_does_not_compile_anew():
    params, mask, groups, options = with_masters("cpu", {"lr": torch.tensor(1e-2)})
    optimizer = MaskedAdamW(groups, **options, mask=mask)
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(lambda: optimizer.step(), backend=counter, fullgraph=True)
    for _ in range(4):
        for param in params:
            param.grad = torch.ones_like(param)
        step()
        options["lr"].mul_(0.5)
    assert counter.frame_count == 1


def test_a_compiled_training_step_breaks_nowhere_on_our_account():
    """Model, backward, step: what is left are breaks of torch's own, such as `backward`."""
    torch._dynamo.utils.counters.clear()
    model, optimizer = make_on_cpu()

    def iteration(inputs):
        model(inputs).square().mean().backward()
        optimizer.step()

    torch.compile(iteration, backend="eager")(torch.ones(5, 6))
    for reason in torch._dynamo.utils.counters["graph_break"]:
        assert "pecker_fast" not in reason, reason
    assert float(optimizer.state[model[0].weight]["step"]) == 1


@pytest.mark.slow
def test_inductor_keeps_the_bits():
    """It changes state in place: what functionalization copies is taken out again."""
    ends = []
    for compiled in (False, True):
        params, mask, groups, options = with_masters("cpu", {"lr": torch.tensor(1e-2)})
        optimizer = MaskedAdamW(groups, **options, mask=mask)
        step = optimizer.step
        if compiled:
            step = torch.compile(lambda step=step: step(), fullgraph=True)
        places = [p.data_ptr() for p in params]
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(param)
            step()
        assert places == [p.data_ptr() for p in params]
        state = [value for kept in optimizer.state.values() for value in kept.values()]
        ends.append([*params, *state])
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
