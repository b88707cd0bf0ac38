"""What only a GPU can show: no waiting, graph capture, streams, devices, memory, sizes.

Everything else runs on the GPU too, through the `backend` fixture. `make test-gpu` turns the skips
of this file into failures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import Oracle, bits

from pecker_fast import MaskedAdamW, SaliencyMask, backends

BASE = {"lr": 1e-2, "weight_decay": 0.1}
SHAPES = {"conv": (8, 4, 3, 3), "linear": (96, 70), "bias": (96,), "one": (1,), "none": (0, 3)}


@pytest.fixture(params=["triton", "cuda", "reference"])
def name(request):
    """A backend that runs on the GPU."""
    reason = None if torch.cuda.is_available() else "no CUDA device"
    reason = reason or backends.available()[request.param]
    if reason is not None:
        if os.environ.get("PECKER_REQUIRE_GPU") == "1":
            pytest.fail(f"PECKER_REQUIRE_GPU=1, but {request.param}: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def kernels(name):
    """The same without the reference, which reads step counts and infinities on the host."""
    if name == "reference":
        pytest.skip("reference: waits for the device by design")
    return name


def make(device="cuda", density=0.4, dtype=torch.float32):
    params = {n: torch.nn.Parameter(torch.randn(s).to(device, dtype)) for n, s in SHAPES.items()}
    params["conv"].data = params["conv"].data.to(memory_format=torch.channels_last)
    masks = None
    if density is not None:
        masks = {n: torch.rand(p.shape) < density for n, p in params.items()}
        masks = {n: mask.to(device) for n, mask in masks.items()}
    return params, masks


def set_grads(params, seed):
    """Gradients at new addresses, contiguous also where the parameter is channels_last."""
    generator = torch.Generator().manual_seed(seed)
    for param in params.values():
        grad = torch.randn(param.shape, generator=generator)
        param.grad = grad.to(param.device, param.dtype)


@pytest.mark.parametrize("density", [None, 0.4], ids=["dense", "masked"])
@pytest.mark.parametrize("release", [False, True], ids=["", "release_grads"])
def test_step_never_waits(kernels, density, release):
    """Neither a new learning rate, nor new gradients, nor a GradScaler's tensors make it wait."""
    if release and density is None:
        pytest.skip("release_grads needs a mask")
    params, masks = make(density=density)
    optimizer = MaskedAdamW(
        params.items(), **BASE, mask=masks, release_grads=release, backend=kernels
    )
    set_grads(params, 0)
    optimizer.step()
    lr = torch.tensor(1e-3, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            optimizer.zero_grad()
            for param in params.values():
                param.grad = torch.ones_like(param)
            optimizer.param_groups[0]["lr"] = lr if step == 3 else 1e-3 * step
            if not release:
                optimizer.found_inf = torch.zeros((), device="cuda")
                optimizer.grad_scale = torch.full((), 8.0, device="cuda")
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
def test_captured_graph(kernels, capturable):
    """Replays count their steps, follow a learning rate on the device and leave others alone."""
    params, masks = make()
    lr = torch.tensor(1e-2, device="cuda")
    optimizer = MaskedAdamW(
        params.items(), lr=lr, weight_decay=0.1, mask=masks, capturable=capturable, backend=kernels
    )
    oracle = Oracle(params, masks, [{"lr": 1e-2, "weight_decay": 0.1}])
    values = {n: torch.empty_like(p) for n, p in params.items()}

    def write(seed):
        set_grads(params, seed)
        for n, p in params.items():
            values[n].copy_(p.grad)

    def step():
        for n, p in params.items():
            p.grad = values[n] * 1.0  # memory of the graph
        optimizer.step()

    def expect(lr):
        oracle.optimizer.param_groups[0]["lr"] = lr
        oracle.step({n: v for n, v in values.items()})
        torch.cuda.synchronize()
        oracle.check(params)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        write(0)
        step()
    torch.cuda.current_stream().wait_stream(stream)
    expect(1e-2)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed in (1, 2, 3):
        write(seed)
        if seed == 3:
            lr.fill_(5e-3)
        graph.replay()
        expect(5e-3 if seed == 3 else 1e-2)
        if seed == 2:  # a step outside, with gradients elsewhere
            write(7)
            for n, p in params.items():
                p.grad = values[n].clone()
            optimizer.step()
            expect(1e-2)
    steps = {float(s["step"]) for s in optimizer.state_dict()["state"].values()}
    assert steps == {5.0}


def test_two_runs_give_the_same_bits(name):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        params, masks = make(dtype=torch.bfloat16)
        optimizer = MaskedAdamW(params.items(), **BASE, amsgrad=True, mask=masks, backend=name)
        for step in range(5):
            set_grads(params, step)
            optimizer.step()
        state = [t for p in params.values() for t in optimizer.state[p].values()]
        results.append([bits(tensor) for tensor in [*params.values(), *state]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_other_stream(name):
    """Work goes to the current stream: there it waits for what that stream still has to do."""
    params, masks = make()
    oracle = Oracle(params, masks, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=name)
    set_grads(params, 1)
    late = {n: p.grad for n, p in params.items()}
    grads = {n: torch.zeros_like(p) for n, p in params.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for n, p in params.items():
            grads[n].copy_(late[n])
            p.grad = grads[n]
        optimizer.step()
        torch.cuda.current_stream().synchronize()
    oracle.step(late)
    oracle.check(params)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_several_devices(name):
    """The current device is another one than the parameters'."""
    params, masks = make("cuda:1")
    params["bias"].data = params["bias"].data.to("cuda:0")
    oracle = Oracle(params, masks := {n: m.to(params[n].device) for n, m in masks.items()}, [BASE])
    optimizer = MaskedAdamW(params.items(), **BASE, mask=masks, backend=name)
    for step in range(3):
        set_grads(params, step)
        oracle.step({n: p.grad for n, p in params.items()})
        optimizer.step()
    oracle.check(params)
    assert torch.cuda.current_device() == 0


def test_more_than_2_31_elements(kernels):
    """Without a mask any size works; a mask refuses what int32 positions cannot reach."""
    numel = 2**31 + 1024
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of GPU memory")
    param = torch.nn.Parameter(torch.ones(numel, dtype=torch.bfloat16, device="cuda"))
    optimizer = MaskedAdamW([("w", param)], lr=0.5, weight_decay=0.0, backend=kernels)
    param.grad = torch.zeros_like(param)
    param.grad[-3:] = 1.0
    param.grad[5] = 1.0
    optimizer.step()
    moved = (param != 1).nonzero().flatten().tolist()
    assert moved == [5, numel - 3, numel - 2, numel - 1]
    assert param[moved].tolist() == [0.5] * 4
    with pytest.raises(ValueError, match=r"positions are int32|2\^31"):
        SaliencyMask.from_scores({"w": param.detach()}, 0.1)


def test_top_k_needs_little_memory(kernels):
    """100 million scores: below 64 MiB beside the positions, and what the CPU selects."""
    scores = [torch.exp(torch.randn(n, device="cuda")) for n in (60_000_000, 1, 40_000_003)]
    k = 10_000_000
    module = backends.select(kernels, "cuda")
    module.select_topk(scores, k)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = module.select_topk(scores, k)
    extra = torch.cuda.max_memory_allocated() - before - 4 * k
    assert extra < 64 * 2**20
    expected = backends.select("auto", "cpu").select_topk([s.cpu() for s in scores], k)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def test_mask_of_scores_on_the_device_is_the_cpus(kernels, monkeypatch):
    monkeypatch.setenv("PECKER_FAST_BACKEND", kernels)
    scores = {"a": torch.rand(300, 50), "b": torch.rand(70, 9, 3)}
    for granularity in ("element", "out_channel", "block", "tensor"):
        on_gpu = {n: s.cuda() for n, s in scores.items()}
        mask = SaliencyMask.from_scores(on_gpu, 0.3, granularity=granularity)
        monkeypatch.setenv("PECKER_FAST_BACKEND", "reference")
        assert mask == SaliencyMask.from_scores(scores, 0.3, granularity=granularity)
        monkeypatch.setenv("PECKER_FAST_BACKEND", kernels)


# What is checked: our kernels, not torch's. Their names are held to these by tests/kernels.
KERNELS = {"cuda": "kns=pecker", "triton": "kns=_kernel"}


@pytest.mark.timeout(650)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(kernels, tool):
    """One small case of each kernel under NVIDIA's checker."""
    checker = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if checker is None:
        pytest.skip("no compute-sanitizer on the PATH")
    script = Path(__file__).parent / "every_kernel.py"
    # torch and Triton probe the driver with calls that fail by design.
    options = ["--error-exitcode", "9", "--report-api-errors", "no", "--kernel-regex"]
    command = [checker, "--tool", tool, *options, KERNELS[kernels], sys.executable, str(script)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*command, kernels],
        capture_output=True, text=True, env=environment, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "every kernel ran" in done.stdout
