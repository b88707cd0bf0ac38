"""Fixtures of the whole suite: backends, poisoned memory, seeds, one thread."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

# Idle OpenMP threads spin, which starves whatever else runs here: one thread unless a test asks.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# A shell without job control starts what it puts in the background deaf to Ctrl-C, and so would be
# the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What forked processes need and would each import. The first to fork starts the server for all.
multiprocessing.set_forkserver_preload(
    ["torch", "pecker_fast.distill.trainer", "dcp_jobs", "gradient_jobs", "pipeline_jobs",
     "transformers.models.clip.modeling_clip", "diffusers.models.unets.unet_2d_condition",
     "diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers.scheduling_ddim",
     "pecker_fast.cli", "pecker_fast.erasure.api", "pecker_fast.evaluate.judging",
     "pecker_fast.evaluate.prompt_judging", "matplotlib.pyplot", "onnxruntime"]
)  # fmt: skip

HERE = Path(__file__).parent
SHARING = ("optim", "distill", "datasets", "nn", "models", "kernels", "methods", "fuzz")
for _folder in (HERE, *(HERE / name for name in SHARING)):
    sys.path.insert(0, str(_folder))  # for what tests share: oracle.py, toys.py, unets.py, ...

# Without a GPU the kernels for GPUs run on the CPU: Triton's in its interpreter, those of csrc/cuda
# compiled by the C++ compiler. Triton reads its variable when kernels are imported.
if not torch.cuda.is_available():
    from cuda_on_host import build
    from interpreter import patch_language_once

    os.environ.setdefault("TRITON_INTERPRET", "1")
    patch_language_once()
    if build.compiler() is not None:
        os.environ["PECKER_FAST_CUDA_ON_HOST"] = str(build.build())

from pecker_fast import backends  # noqa: E402

# Fixture id -> the backend and the device its tensors are on.
BACKENDS = {
    "reference": ("reference", "cpu"),
    "reference-on-gpu": ("reference", "cuda"),
    "cpu": ("cpu", "cpu"),
    "triton-interpret": ("triton", "cpu"),
    "triton": ("triton", "cuda"),
    "cuda-on-host": ("cuda", "cpu"),
    "cuda": ("cuda", "cuda"),
}

# Torch collects its constructors at the first use of a device context: before they are replaced
# below, or `with torch.device("meta")` would allocate for real.
with torch.device("meta"):
    torch.empty(0)


@dataclass(frozen=True)
class BackendCase:
    """A backend under test."""

    name: str  # as MaskedAdamW and backends.select take it
    device: torch.device

    @property
    def module(self) -> backends.Backend:
        return backends.select(self.name, self.device)

    @property
    def emulated(self) -> bool:
        """A backend for GPUs, on the CPU: slow."""
        return self.name in ("triton", "cuda") and self.device.type == "cpu"


@pytest.fixture(params=[id for id, (name, _) in BACKENDS.items() if name in backends.available()])
def backend(request: pytest.FixtureRequest) -> BackendCase:
    """Every backend there is. One that cannot be used here skips the test with its reason."""
    name, device = BACKENDS[request.param]
    reason = backends.available()[name]
    if device == "cuda" and not torch.cuda.is_available():
        reason = "no CUDA device"
    if request.param == "triton-interpret" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "needs TRITON_INTERPRET=1 from the start of the process"
    if request.param == "cuda-on-host" and "PECKER_FAST_CUDA_ON_HOST" not in os.environ:
        reason = "a C++ compiler and no CUDA device are needed"
    if reason is not None:
        # `make test-gpu` must not pass by skipping what it is there to test.
        if device == "cuda" and os.environ.get("PECKER_REQUIRE_GPU") == "1":
            pytest.fail(f"PECKER_REQUIRE_GPU=1, but {request.param}: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    return BackendCase(name, torch.device(device))


@pytest.fixture
def gpu() -> None:
    """Skips a test that needs a GPU where there is none."""
    if not torch.cuda.is_available():
        if os.environ.get("PECKER_REQUIRE_GPU") == "1":
            pytest.fail("PECKER_REQUIRE_GPU=1, but no CUDA device")
        pytest.skip("no CUDA device")
    torch.backends.cudnn.deterministic = True


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the Inception network under the published name, drawn instead of trained."""
    from inception_weights import write_inception_weights

    from pecker_fast.evaluate.fidelity import WEIGHTS_NAME

    return write_inception_weights(tmp_path_factory.mktemp("inception") / WEIGHTS_NAME)


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what pecker_fast allocates uninitialized: reading it before writing then shows."""

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("pecker_fast") and tensor.device.type != "meta":
                if tensor.is_floating_point():
                    tensor.detach().fill_(float("nan"))
                elif tensor.dtype in (torch.int16, torch.int32, torch.int64):
                    tensor.fill_(torch.iinfo(tensor.dtype).min)
            return tensor

        return allocate_poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(20260407)
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: a full garbage collection of it takes .3 s."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Or triton's bindings would report at the end what was never collected."""
    gc.unfreeze()


def emulated_backend(item: pytest.Item) -> str | None:
    """The backend for GPUs that a test runs on the CPU, if it does."""
    for name in ("triton-interpret", "cuda-on-host"):
        if name in item.name:
            return name
    kernels = item.path.name.startswith("test_triton_")
    return "triton-interpret" if kernels and not torch.cuda.is_available() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test's cases on an emulated backend all but the first are slow.

    The longest tests, which have a time limit of their own, begin first.
    """
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
    seen = set()
    for item in items:
        backend = emulated_backend(item)
        if backend is not None:
            case = item.nodeid.partition("[")[0], backend
            if case in seen:
                item.add_marker("slow")
            seen.add(case)
