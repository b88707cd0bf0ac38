"""Other packages' kernels that can take a masked step. One that is not installed has no row.

Only gsplat's is known to skip entries by a mask. Looked at and left out: bitsandbytes' `skip_zeros`
(it skips wherever the gradient is zero, salient or not), sparse and lazy Adams (whole rows), and
dense fused AdamWs, of which torch's is here already.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from inputs import LINE_BYTES, Case, touched_lines
from providers import Builder, NotApplicable, Provider, frozen_kept, nbytes
from torch import Tensor

__all__ = ["PEERS", "absent", "builders"]


def gsplat_selective_adam(case: Case) -> Provider:
    """SelectiveAdam of gsplat, which updates the Gaussians (rows) that are visible.

    A parameter seen as a vector has rows of one entry, so its visibility is an element mask. There
    is one launch for each parameter, moments are dense, and the maths is Adam's without weight
    decay and bias correction: less than a masked AdamW step does, which favours this row.
    """
    from gsplat.optimizers import SelectiveAdam

    if case.masks is None:
        raise NotApplicable("gsplat SelectiveAdam without a mask is not a masked step")
    if case.dtype != torch.float32:
        raise NotApplicable("gsplat SelectiveAdam takes float32 only")
    lr, betas = case.options["lr"], case.options["betas"]
    steps = []
    for name, param in case.params.items():
        flat = torch.nn.Parameter(param.detach().view(-1))
        optimizer = SelectiveAdam([{"params": [flat], "lr": lr}], eps=1e-8, betas=betas)
        steps.append((param, flat, optimizer, case.masks[name].view(-1)))

    def step() -> None:
        for param, flat, optimizer, visible in steps:
            flat.grad = param.grad.view(-1)
            optimizer.step(visible)

    before = {name: param.detach().clone() for name, param in case.params.items()}
    step()
    touched, _ = touched_lines(case)
    states = (state for _, _, optimizer, _ in steps for state in optimizer.state.values())
    return Provider(
        step,
        # parameter and moments read and written, gradient read; the mask
        7 * LINE_BYTES * touched + nbytes(case.masks.values()),
        nbytes(tensor for state in states for tensor in state.values()),
        nbytes(case.masks.values()),
        frozen_kept(case.params, before, case.masks) and _is_gsplats_adam(case, before),
    )


def _is_gsplats_adam(case: Case, before: dict[str, Tensor]) -> bool:
    """Whether the first step is that of Adam without bias correction."""
    lr, (beta1, beta2) = case.options["lr"], case.options["betas"]
    for name, param in case.params.items():
        exp_avg = (1 - beta1) * param.grad
        exp_avg_sq = (1 - beta2) * param.grad.square()
        expected = before[name] - lr * exp_avg / (exp_avg_sq.sqrt() + 1e-8)
        salient = case.masks[name]
        if not torch.allclose(param[salient], expected[salient], rtol=1e-5, atol=1e-7):
            return False
    return True


# Name of the row -> the package it needs and how it is made.
PEERS: dict[str, tuple[str, Callable[[Case], Provider]]] = {
    "gsplat SelectiveAdam": ("gsplat", gsplat_selective_adam),
}


def absent() -> list[str]:
    """The rows there are none of, because their package is not installed."""
    return [name for name, (package, _) in PEERS.items() if not _installed(package)]


def builders(case: Case) -> dict[str, Builder]:
    """A builder for each peer that is installed."""
    return {
        name: partial(build, case)
        for name, (package, build) in PEERS.items()
        if _installed(package)
    }


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
