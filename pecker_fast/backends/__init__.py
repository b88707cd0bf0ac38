"""The backends: the same functions with the same signatures, chosen once and visibly.

A backend has the functions of `Backend` below: a module, or the object BACKEND in it. `reference`
documents them. Any name can be forced with `backend=...` or, where that is left at "auto", with the
environment variable PECKER_FAST_BACKEND.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pecker_fast.backends.work import Work

__all__ = ["Backend", "available", "name_of", "on_host", "select"]

# In the order in which "auto" tries them for each type of device.
_AUTO = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_NAMES = ("reference", "cpu", "triton", "cuda")
_TRITON = (3, 6)  # the oldest the kernels were tried with


class Backend(Protocol):
    """What every backend provides; `reference` says what each function takes and does."""

    __name__: str
    STEPS_ON_DEVICE: bool  # where `prepare` wants the step counts: there, or on the CPU

    prepare: Callable[..., Work]
    masked_adamw_: Callable[..., None]
    gather_salient_: Callable[..., None]
    scatter_salient_: Callable[..., None]
    swap_salient_: Callable[..., None]
    ema_salient_: Callable[..., None]
    norm_salient: Callable[..., tuple[Tensor, Tensor]]
    select_topk: Callable[..., list[Tensor]]
    select_groups: Callable[..., list[Tensor]]


def available() -> dict[str, str | None]:
    """Every backend's name -> None where it can be used here, else the reason why not."""
    return {
        "reference": None,
        "cpu": _why_not_built("cpu"),
        "triton": _why_no_triton(),
        "cuda": _why_no_cuda(),
    }


def select(name: str, device: torch.device | str) -> Backend:
    """The backend for tensors on `device`.

    Args:
        name: "auto" or one of `available()`.
        device: where the tensors are.

    Raises:
        PeckerError: no such backend, not usable here (with the reason), or not for this device.
    """
    device_type = torch.device(device).type
    if name == "auto":
        name = os.environ.get("PECKER_FAST_BACKEND", "auto")
    reasons = available()
    if name == "auto":
        order = _AUTO.get(device_type, ("reference",))
        name = next(candidate for candidate in order if reasons[candidate] is None)
    if name not in reasons:
        raise PeckerError(
            f"backend {name!r} does not exist: expected 'auto' or one of {', '.join(_NAMES)}"
        )
    if reasons[name] is not None:
        raise PeckerError(f"backend {name!r} is not available: {reasons[name]}; use 'auto'")
    if name not in ("reference", *_AUTO.get(device_type, ()), *on_host()):
        raise PeckerError(
            f"backend {name!r} cannot work on tensors on {device}: use 'auto' or 'reference'"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    backend: Backend = getattr(module, "BACKEND", module)
    return backend


def name_of(backend: Backend) -> str:
    """The short name, as `select` takes it."""
    return backend.__name__.rpartition(".")[2]


def on_host() -> tuple[str, ...]:
    """The GPU backends that run on CPU tensors in this process: slowly, for tests."""
    interpreted = ("triton",) if os.environ.get("TRITON_INTERPRET") == "1" else ()
    return (*interpreted, *(("cuda",) if "PECKER_FAST_CUDA_ON_HOST" in os.environ else ()))


def _why_no_triton() -> str | None:
    if reason := _why_triton_is_missing():
        return reason
    if "triton" not in on_host() and not torch.cuda.is_available():
        return "no CUDA device (TRITON_INTERPRET=1 runs it on the CPU, for tests)"
    return None


@functools.cache
def _why_triton_is_missing() -> str | None:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error}): pip install 'pecker-fast[triton]'"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _TRITON:
        wanted = ".".join(map(str, _TRITON))
        return f"triton {triton.__version__} is too old: {wanted} or newer is needed"
    return None


def _why_no_cuda() -> str | None:
    if "cuda" in on_host():
        return None
    if reason := _why_not_built("cuda"):
        return reason
    return None if torch.cuda.is_available() else "built, but there is no CUDA device"


@functools.cache
def _why_not_built(backend: str) -> str | None:
    report = Path(__file__).parent.parent / "_build_report.json"
    built = json.loads(report.read_text()).get(backend) if report.exists() else "built"
    if built != "built":
        return str(built or "not built at installation")
    module, needs = {"cpu": ("_C", "a C++ compiler"), "cuda": ("_cuda", "nvcc")}[backend]
    try:
        importlib.import_module(f"pecker_fast.{module}")
    except ImportError as error:
        return f"pecker_fast.{module} cannot be imported ({error}): reinstall with {needs}"
    return None
