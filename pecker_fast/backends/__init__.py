"""The backends: the same functions with the same signatures, chosen once and visibly.

A backend is a module with `prepare`, `masked_adamw_`, `gather_salient_`, `scatter_salient_`,
`ema_salient_` and `select_topk`; `reference` documents them. Any name can be forced with
`backend=...` or, where that is left at "auto", with the environment variable PECKER_FAST_BACKEND.
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
    from collections.abc import Sequence

    from torch import Tensor

    from pecker_fast.backends.work import Entry, Hyperparameters, Work

__all__ = ["Backend", "available", "name_of", "select"]

# In the order in which "auto" tries them for each type of device.
_AUTO = {"cpu": ("cpu", "reference"), "cuda": ("reference",)}
_NAMES = ("reference", "cpu")


class Backend(Protocol):
    """What every module in this package provides."""

    __name__: str

    def prepare(self, entries: Sequence[Entry], steps: Tensor, compact_grads: bool = False) -> Work:
        """As the reference's."""
        ...

    def masked_adamw_(
        self,
        work: Work,
        grads: Sequence[Tensor | None],
        groups: Sequence[Hyperparameters],
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """As the reference's."""
        ...

    def gather_salient_(
        self,
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        out: Sequence[Tensor],
        accumulate: bool = False,
    ) -> None:
        """As the reference's."""
        ...

    def scatter_salient_(
        self,
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        values: Sequence[Tensor],
    ) -> None:
        """As the reference's."""
        ...

    def ema_salient_(
        self,
        averages: Sequence[Tensor],
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        decay: float,
    ) -> None:
        """As the reference's."""
        ...

    def select_topk(
        self, scores: Sequence[Tensor], k: int, names: Sequence[str] | None = None
    ) -> list[Tensor]:
        """As the reference's."""
        ...


def available() -> dict[str, str | None]:
    """Every backend's name -> None where it can be used here, else the reason why not."""
    return {"reference": None, "cpu": _why_no_cpu()}


def select(name: str, device: torch.device | str) -> Backend:
    """The backend module for tensors on `device`.

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
    if name != "reference" and name not in _AUTO.get(device_type, ()):
        raise PeckerError(
            f"backend {name!r} cannot work on tensors on {device}: use 'auto' or 'reference'"
        )
    module: Backend = importlib.import_module(f"{__name__}.{name}")
    return module


def name_of(backend: Backend) -> str:
    """The short name, as `select` takes it."""
    return backend.__name__.rpartition(".")[2]


@functools.cache
def _why_no_cpu() -> str | None:
    report = Path(__file__).parent.parent / "_build_report.json"
    built = json.loads(report.read_text())["cpu"] if report.exists() else "built"
    if built != "built":
        return str(built)
    try:
        importlib.import_module("pecker_fast._C")
    except ImportError as error:
        return f"pecker_fast._C cannot be imported ({error}): reinstall with a C++ compiler"
    return None
