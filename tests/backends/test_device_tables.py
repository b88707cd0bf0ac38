"""What a captured graph reads stays its own. The capture is feigned: there is no GPU here to make
one; tests/test_gpu.py makes a real one where there is.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import operator
import weakref

import every_kernel
import pytest
import torch
from oracle import bits
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pecker_fast import MaskedAdamW, backends
from pecker_fast.backends import device, device_tables, device_topk
from pecker_fast.backends.kernels import Kernels


@pytest.fixture
def launches(monkeypatch):
    """The launches of a device backend on the CPU, recorded so that they can be replayed."""
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    kernels = backends.select("cuda", "cpu")._backend._kernels
    recorded = []
    for name in ("advance", "masked_adamw"):
        launch = getattr(kernels, name)

        def record(*args, launch=launch):
            recorded.append((launch, args))
            launch(*args)

        monkeypatch.setattr(kernels, name, record)
    return recorded


@pytest.fixture
def capture(monkeypatch):
    """Switches what the tables take for the state of the stream."""

    def switch(on):
        monkeypatch.setattr(device_tables, "is_capturing", lambda device: on)

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
    eager = optimizer._prepared.batches[0].work._grad_table

    optimizer.param_groups[0]["lr"] = 0.0
    param.grad = other_grad
    optimizer.step()
    assert optimizer._prepared.batches[0].work._grad_table.tolist() == [other_grad.data_ptr()]
    before = param.detach().clone()
    graph_grads = graph[0][1][1]
    assert graph_grads.data_ptr() != eager.data_ptr()
    assert graph_grads.tolist() == [graph_grad.data_ptr()]
    for launch, args in graph:  # a replay: the captured learning rate and gradient
        launch(*args)
    moved = param.detach() != before
    assert moved.any()
    assert float(optimizer.state[param]["step"]) == 4.0
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
    kept = {id(tensor) for tensor in work._captured}
    assert {id(table), id(blocks)} <= kept


def test_every_launch_has_its_device_made_current(monkeypatch):
    """The kernels' launches rely on it: several devices are not at hand here."""
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    kernels = backends.select("cuda", "cpu")._backend._kernels
    current, launched = [], []

    @contextlib.contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    for module in (device, device_topk):
        monkeypatch.setattr(module, "on", on)
    for name in vars(Kernels):
        if not name.startswith("_") and name not in ("slots_per_block", "items_per_tile"):
            launch = getattr(kernels, name)

            def watched(*args, launch=launch, name=name):
                assert current == [torch.device("cpu")], name
                launched.append(name)
                launch(*args)

            monkeypatch.setattr(kernels, name, watched)
    for name, value in (("_SAMPLE_FROM", device_topk._SAMPLE_FROM), ("_SAMPLES", 512)):
        monkeypatch.setattr(device_topk, name, value)  # every_kernel.py changes them
    every_kernel.main("cuda", "cpu")
    methods = {name for name in vars(Kernels) if not name.startswith("_")}
    assert set(launched) == methods - {"slots_per_block", "items_per_tile"}


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
    upload = device_tables.upload

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
    assert optimizer._prepared.batches[0].work._captured == []


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


def test_only_what_changed_is_uploaded(launches, monkeypatch):
    param, optimizer = make()
    param.grad = torch.ones(40, 50)
    optimizer.step()
    uploads = []
    upload = device_tables.upload
    monkeypatch.setattr(
        device_tables, "upload", lambda *args: uploads.append(args[1]) or upload(*args)
    )
    optimizer.step()
    assert uploads == []
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert uploads == [torch.float64]
    param.grad = torch.ones(40, 50)
    optimizer.step()
    assert uploads == [torch.float64, torch.int64]


def test_copies_during_a_capture_use_the_tables_of_before(capture, monkeypatch):
    """Pinned memory cannot be had then, and what a graph reads must not be freed."""
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    backend = backends.select("cuda", "cpu")._backend
    params = [torch.randn(5, 8), torch.randn(70)]
    positions = [torch.arange(0, p.numel(), 3, dtype=torch.int32) for p in params]
    values = [torch.zeros(len(p)) for p in positions]
    backend.ema_salient_(values, params, positions, 0.5)
    device_tables.remembered_tables.cache_clear()
    backend.ema_salient_(values, params, positions, 0.5)
    capture(True)
    monkeypatch.setattr(device, "is_capturing", lambda device: True)
    uploads = []
    monkeypatch.setattr(device_tables, "upload", lambda *args: uploads.append(args))
    before = len(device._captured)
    with device.captured_tables() as kept:
        backend.ema_salient_(values, params, positions, 0.5)
    assert uploads == []
    assert len(device._captured) == before  # they go with the graph
    backend.ema_salient_(values, params, positions, 0.5)
    assert all(map(operator.is_, kept, device._captured[before:]))
    device_tables.remembered_tables.cache_clear()
    assert kept[0].numel() == 4 * len(params)
    torch.testing.assert_close(values[1], 0.9375 * params[1][positions[1].long()])
