"""What a captured graph reads stays its own. The capture is feigned: there is no GPU here to make
one; tests/test_gpu.py makes a real one where there is.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import operator
import weakref

import every_kernel
import numpy as np
import pytest
import torch
from oracle import bits
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pecker_fast import MaskedAdamW, backends
from pecker_fast.backends import device, device_tables, device_topk, uploads
from pecker_fast.backends.kernels import LAUNCHES, StepTables
from pecker_fast.backends.work import Hyperparameters


@pytest.fixture
def launches(monkeypatch):
    """The launches of a device backend on the CPU, recorded so that they can be replayed."""
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    kernels = backends.select("cuda", "cpu").kernels
    recorded = []
    for name in ("advance", "masked_adamw"):
        launch = getattr(kernels, name)

        def record(*args, launch=launch):
            recorded.append((launch, args))
            return launch(*args)

        monkeypatch.setattr(kernels, name, record)
    return recorded


@pytest.fixture
def capture(monkeypatch):
    """Switches what the tables take for the state of the stream."""

    def switch(on):
        for module in (device, uploads):
            monkeypatch.setattr(module, "is_capturing", lambda device: on)

    return switch


def make():
    param = torch.nn.Parameter(torch.randn(40, 50))
    mask = torch.rand(40, 50) < 0.3
    return param, MaskedAdamW([param], lr=0.1, mask={param: mask}, backend="cuda")


def test_steps_outside_a_graph_do_not_disturb_it(launches, capture):
    param, optimizer = make()
    graph_grad, other_grad = torch.randn(40, 50), torch.randn(40, 50)
    param.grad = torch.zeros(40, 50)
    optimizer.step()

    capture(True)
    param.grad = graph_grad
    launches.clear()
    optimizer.step()
    graph = list(launches)
    capture(False)

    optimizer.param_groups[0]["lr"] = 0.0
    param.grad = other_grad
    optimizer.step()
    table = optimizer._prepared.batches[0].work.tables.grads
    assert table.tolist() == [other_grad.data_ptr()]
    before = param.detach().clone()
    for launch, args in graph:  # a replay: the captured learning rate and gradient
        launch(*args)
    moved = param.detach() != before
    assert moved.any()
    assert float(optimizer.state[param]["step"]) == 4.0
    assert table.tolist() == [graph_grad.data_ptr()]  # each launch writes what it was given
    before = param.detach().clone()
    optimizer.step()  # and the eager step still has its own: a learning rate of 0
    assert torch.equal(bits(param), bits(before))


def test_tables_of_a_graph_outlive_new_layouts(launches, capture):
    """A gradient of other strides makes new tables; those of the graph must not be freed."""
    param, optimizer = make()
    param.grad = torch.zeros(40, 50)
    optimizer.step()
    work = optimizer._prepared.batches[0].work
    capture(True)
    launches.clear()
    optimizer.step()
    capture(False)
    table, blocks = launches[1][1][3], launches[1][1][6]
    param.grad = torch.zeros(50, 40).t()
    optimizer.step()
    assert work.table is not table
    kept = {id(tensor) for tensor in work._former}
    assert {id(table), id(blocks)} <= kept


def test_every_launch_has_its_device_made_current(monkeypatch):
    """The kernels' launches rely on it: several devices are not at hand here."""
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    kernels = backends.select("cuda", "cpu").kernels
    current, launched = [], []

    @contextlib.contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    for module in (device, device_topk):
        monkeypatch.setattr(module, "on", on)
    names = ("advance", "masked_adamw", "salient_one", *LAUNCHES)
    for name in names:
        launch = getattr(kernels, name)

        def watched(*args, launch=launch, name=name):
            assert current == [torch.device("cpu")], name
            launched.append(name)
            return launch(*args)

        monkeypatch.setattr(kernels, name, watched)
    for name, value in (("_SAMPLE_FROM", device_topk._SAMPLE_FROM), ("_SAMPLES", 512)):
        monkeypatch.setattr(device_topk, name, value)  # every_kernel.py changes them
    every_kernel.main("cuda", "cpu")
    assert set(launched) == set(names)


class NoWait(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading from it, and tensors made of numbers.

    A tensor of host numbers is copied from memory that is not pinned.
    """

    WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.WAITS), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_a_gradient_of_another_layout_does_not_make_a_step_wait(launches, masked, monkeypatch):
    """Nor do other addresses and hyperparameters: only the first step prepares."""
    upload = uploads.upload

    def from_pinned_memory(*args):
        with _disable_current_modes():
            return upload(*args)

    monkeypatch.setattr(device_tables, "upload", from_pinned_memory)
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    params = [torch.nn.Parameter(weight), torch.nn.Parameter(torch.randn(40, 50))]
    masks = {p: torch.rand(p.shape) < 0.3 for p in params} if masked else None
    optimizer = MaskedAdamW(params, lr=0.1, mask=masks, backend="cuda")
    for step in range(4):
        for param in params:
            grad = torch.ones_like(param)  # channels_last
            param.grad = grad.contiguous() if step % 2 == 0 else grad
        params[1].grad = torch.ones(40, 50) if step < 2 else torch.ones(50, 40).t()
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        with NoWait() if step else contextlib.nullcontext():
            optimizer.step()


def test_nothing_is_kept_without_a_capture(launches):
    param, optimizer = make()
    for step in range(6):
        param.grad = torch.zeros(40, 50) if step % 2 else torch.zeros(50, 40).t()
        optimizer.step()
    work = optimizer._prepared.batches[0].work
    assert work._former == [] and not work.captured


@pytest.mark.parametrize("change", ["set_mask", "load_state_dict", "a new state tensor"])
def test_a_graph_of_the_old_mask_or_state_writes_into_no_freed_memory(launches, capture, change):
    """Replayed afterwards, it goes on with what it was captured with, until it is forgotten."""
    param, optimizer = make()
    param.grad = torch.ones(40, 50)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    capture(True)
    launches.clear()
    optimizer.step()
    capture(False)
    graph = list(launches)
    work = weakref.ref(optimizer._prepared.batches[0].work)
    old = weakref.ref(optimizer.state[param]["exp_avg_sq"])
    kept = old().clone()
    if change == "set_mask":
        optimizer.set_mask({param: torch.rand(40, 50) < 0.3})
    elif change == "load_state_dict":
        optimizer.load_state_dict(saved)
    else:
        optimizer.state[param]["exp_avg_sq"] = old().clone()
    optimizer.step()
    new = optimizer.state[param]["exp_avg_sq"]
    after = new.clone()

    addresses = graph[1][1][3]  # the table of masked_adamw, whose column 4 is exp_avg_sq
    assert addresses[0, 4] == old().data_ptr() != new.data_ptr()
    graph_launches, graph = graph, None
    launches.clear()
    for launch, args in graph_launches:
        launch(*args)
    assert not torch.equal(old(), kept)
    assert torch.equal(new, after)
    assert copy.deepcopy(optimizer)._captured == ()

    optimizer.forget_captures()
    del graph_launches, launch, args, addresses
    gc.collect()
    assert work() is None
    assert old() is None


def test_nothing_is_uploaded_at_a_step(launches, monkeypatch):
    """What the host says lies in the parameters of a launch."""
    param, optimizer = make()
    param.grad = torch.ones(40, 50)
    optimizer.step()
    for module in (device_tables, uploads):
        monkeypatch.setattr(module, "upload", None)
    for lr in (0.1, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.ones(40, 50)
        optimizer.step()


def test_hyperparameters_on_the_device_are_read_at_each_launch(launches):
    """Also in another dtype than the kernel's, and where several launches take the parameters."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(50)]
    groups = [{"params": params[i : i + 7]} for i in range(0, 50, 7)]
    optimizer = MaskedAdamW(groups, weight_decay=0.0, backend="cuda")
    lr, beta1 = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5)
    said = [Hyperparameters.of(group) for group in optimizer.param_groups]
    for i in (1, 5):
        said[i] = Hyperparameters(**(vars(said[i]) | {"lr": lr, "beta1": beta1}))
    backend = backends.select("cuda", "cpu")
    [batch] = optimizer._batches()
    grads = [torch.ones(3) for _ in params]
    grads[3] = None
    for factor in (1.0, 2.0):
        lr.fill_(0.5 * factor)
        before = [param.detach().clone() for param in params]
        backend.masked_adamw_(batch.work, grads, said)
        for i, param in enumerate(params):
            moved = float((before[i] - param.detach())[0])
            expected = 0.0 if i == 3 else 0.5 * factor if i // 7 in (1, 5) else 1e-3
            assert moved == pytest.approx(expected, rel=1e-3), i
    assert [float(step) for step in batch.work.steps] == [0.0 if i == 3 else 2.0 for i in range(50)]


@pytest.fixture
def triton():
    """Triton's kernels, which take no arrays in their parameters, and none of their launches."""
    pytest.importorskip("triton", minversion="3.6", reason="triton is not installed, or too old")
    return importlib.import_module("pecker_fast.backends.triton")


def tables():
    return StepTables(*[torch.zeros(2, dtype=torch.int64)] * 6)


def numbers(lr):
    return [Hyperparameters(lr, 0.9, 0.99, 1e-8, 0.0, False, False, None)]


def test_only_what_changed_is_uploaded(triton, monkeypatch):
    uploaded = []
    upload = uploads.upload
    monkeypatch.setattr(uploads, "upload", lambda *args: uploaded.append(args[1]) or upload(*args))
    monkeypatch.setattr(triton.advance_kernels, "advance", lambda *args: None)
    here, made = np.array([16, 32]), tables()
    for addresses, lr, expected in (
        (here, 0.1, [torch.int64, torch.float64]),
        (here.copy(), 0.1, []),
        (here, 0.01, [torch.float64]),
        (here + 8, 0.01, [torch.int64]),
    ):
        uploaded.clear()
        table = triton.BACKEND.kernels.advance(made, addresses, numbers(lr), None)
        assert uploaded == expected
        assert table.tolist() == addresses.tolist()


def test_uploads_of_a_graph_are_its_own(triton, capture, monkeypatch):
    launched = []
    monkeypatch.setattr(triton.advance_kernels, "advance", lambda *args: launched.append(args))
    made = tables()

    def advance(addresses, lr):
        return triton.BACKEND.kernels.advance(made, np.array(addresses), numbers(lr), None)

    advance([16, 32], 0.1)
    capture(True)
    with monkeypatch.context() as patch:  # pinned memory cannot be had
        patch.setattr(uploads, "_pinned", None)
        captured = advance([48, 64], 0.2)
        assert advance([56, 72], 0.2).tolist() == [56, 72]  # a second step in the same capture
    del launched[2]
    capture(False)
    again = advance([80, 96], 0.3)
    assert captured.tolist() == [48, 64] and launched[1][2][0, 0] == 0.2
    assert again.tolist() == [80, 96] and launched[2][2][0, 0] == 0.3
    advance([80, 96], torch.tensor(0.7))
    assert launched[3][2][0, 0] == pytest.approx(0.7)


def test_copies_during_a_capture_use_the_tables_of_before(capture, monkeypatch):
    """Pinned memory cannot be had then, and what a graph reads must not be freed."""
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    backend = backends.select("cuda", "cpu")
    params = [torch.randn(5, 8), torch.randn(70)]
    positions = [torch.arange(0, p.numel(), 3, dtype=torch.int32) for p in params]
    values = [torch.zeros(len(p)) for p in positions]
    backend.ema_salient_(values, params, positions, 0.5)
    device_tables.remembered_tables.cache_clear()
    backend.ema_salient_(values, params, positions, 0.5)
    capture(True)
    uploaded = []
    monkeypatch.setattr(device_tables, "upload", lambda *args: uploaded.append(args))
    before = len(device._captured)
    with device.captured_tables() as kept:
        backend.ema_salient_(values, params, positions, 0.5)
    assert uploaded == []
    assert len(device._captured) == before  # they go with the graph
    backend.ema_salient_(values, params, positions, 0.5)
    assert all(map(operator.is_, kept, device._captured[before:]))
    device_tables.remembered_tables.cache_clear()
    assert kept[0].numel() == 4 * len(params)
    torch.testing.assert_close(values[1], 0.9375 * params[1][positions[1].long()])
