"""Ways to take an optimizer step: ours on every backend, checked first, and what people run today.

Looked at and left out: gsplat's SelectiveAdam (a launch for each parameter, dense moments, neither
weight decay nor bias correction), bitsandbytes' `skip_zeros` (it skips wherever the gradient is
zero, salient or not), sparse and lazy Adams (whole rows), and dense fused AdamWs, of which torch's
is here already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from bench import Builder, NotApplicable, Provider
from inputs import Masks, Params, StepInput, bytes_floor, nbytes
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

__all__ = ["baselines", "checked_ours", "compiled_idle", "frozen_kept", "gate", "ours"]

# rtol and atol by dtype, as in the tests: low precision may round to either neighbour.
TOLERANCES = {
    torch.float32: (1e-6, 1e-7),
    torch.bfloat16: (2**-7, 1e-7),
    torch.float16: (2**-10, 1e-7),
}


# ---- ours


def ours(made: StepInput, backend: str) -> MaskedAdamW:
    """The optimizer under test."""
    return MaskedAdamW(made.params.items(), **made.options, mask=made.masks, backend=backend)


def checked_ours(made: StepInput, backend: str, compiled: bool = False) -> Provider:
    """The optimizer after three steps that were compared with the reference's."""
    before = _copies(made.params)
    try:
        optimizer = ours(made, backend)
    except PeckerError as error:  # e.g. a tensor too large for int32 positions
        raise NotApplicable(str(error)) from None
    if compiled:
        optimizer.step = _compiled(optimizer)  # type: ignore[method-assign]
    match = gate(made, optimizer, before)
    return _provider(made, optimizer, optimizer.step, bytes_floor(made), match)


def _compiled(optimizer: MaskedAdamW) -> Callable[[], object]:
    step = optimizer.step
    return torch.compile(lambda: step(), fullgraph=True)


class _Idle(MaskedAdamW):
    def _step(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what a compiled step still costs is torch's guards, wrapper and dispatch."""


def compiled_idle(made: StepInput, backend: str) -> Provider:
    """What a compiled step of these tensors costs that does nothing."""
    optimizer = _Idle(made.params.items(), **made.options, mask=made.masks, backend=backend)
    step = _compiled(optimizer)
    step()
    return _provider(made, optimizer, step, 0)


def gate(made: StepInput, optimizer: MaskedAdamW, before: dict[str, Tensor]) -> bool:
    """Three steps: parameters and state as the reference's, and every frozen bit kept.

    Each step finds new gradient tensors of the opposite sign: one that was remembered by its
    address, or not read again, shows.

    The reference runs on one parameter at a time, so that its state and its temporaries fit beside
    a network that fills half of the memory. The reference starts from the copies `before` and
    changes them.
    """
    for step in range(3):
        if step > 0:
            made.negate_grads()
        optimizer.step()
    if not frozen_kept(made.params, before, made.masks):
        return False
    for name, param in made.params.items():
        masks = None if made.masks is None else {name: made.masks[name]}
        if masks is not None and not masks[name].any():
            continue  # frozen as a whole
        expected = torch.nn.Parameter(before[name])
        expected.grad = param.grad
        reference = MaskedAdamW([(name, expected)], **made.options, mask=masks, backend="reference")
        for step in range(3):
            if step > 0:
                expected.grad = -expected.grad
            reference.step()
        if not torch.allclose(param, expected, *TOLERANCES[made.dtype]):
            return False
        state = optimizer.state[param]
        for key, value in reference.state[expected].items():
            if not torch.allclose(state[key].to(value.device), value, *TOLERANCES[torch.float32]):
                return False
    return True


def frozen_kept(params: Params, before: dict[str, Tensor], masks: Masks | None) -> bool:
    """Whether every entry outside the mask has the bits it had."""
    if masks is None:
        return True
    integers = {2: torch.int16, 4: torch.int32}
    for name, param in params.items():
        dtype = integers[param.element_size()]
        moved = param.detach().view(dtype) != before[name].view(dtype)
        if (moved & ~masks[name]).any():
            return False
    return True


# ---- what people run today


def baselines(made: StepInput) -> dict[str, Builder]:
    """The optimizers of torch, alone and after `grad *= mask`, with and without restoring."""
    params, masks = list(made.params.values()), made.masks
    size, numel = nbytes(params), sum(param.numel() for param in params)
    step_bytes = 7 * size  # parameter and moments read and written, gradient read

    def stepped(**kind: bool) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(params, **made.options, **kind)
        optimizer.step()  # its state is there to be counted
        return optimizer

    fused = cache(partial(stepped, fused=True))  # only the time of a step matters: they share it

    def foreach() -> Provider:
        optimizer = stepped(foreach=True)
        return _provider(made, optimizer, optimizer.step, step_bytes)

    def dense() -> Provider:
        return _provider(made, fused(), fused().step, step_bytes)

    # foreach first: it is the only one with a state of its own, which can go before the others come
    builders: dict[str, Builder] = {"torch_foreach": foreach, "torch_fused": dense}
    if masks is None:
        return builders

    def gradmask(dtype: torch.dtype, at_once: bool = False) -> Provider:
        own = [mask.to(dtype) for mask in masks.values()]

        def step() -> None:
            grads = [param.grad for param in params]
            if at_once:
                torch._foreach_mul_(grads, own)
            else:
                for grad, mask in zip(grads, own, strict=True):
                    grad.mul_(mask)
            fused().step()

        return _provider(made, fused(), step, step_bytes + 2 * size + nbytes(own))

    def restore() -> Provider:
        originals = _copies(made.params)
        masked = gradmask(torch.bool)

        @torch.no_grad()
        def step() -> None:
            masked.call()
            for name, param in made.params.items():
                param.copy_(torch.where(masks[name], param, originals[name]))

        step()
        moved = masked.columns["bytes_moved"] + 5 * size + numel
        return _provider(made, fused(), step, moved, frozen_kept(made.params, originals, masks))

    return builders | {
        "gradmask_fused": partial(gradmask, torch.bool),
        "gradmask_int64_fused": partial(gradmask, torch.int64),  # as SalUn's files have them
        "gradmask_foreach_fused": partial(gradmask, made.dtype, at_once=True),
        "gradmask_fused_restore": restore,
    }


def _provider(
    made: StepInput,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], object],
    bytes_moved: int,
    match: bool | None = None,
) -> Provider:
    state = (tensor for values in optimizer.state.values() for tensor in values.values())
    columns = {
        "bytes_moved": bytes_moved,
        "floor_bytes": bytes_floor(made),
        "state_bytes": nbytes(state),
    }
    return Provider(step, match, columns, made.fresh_grads)


def _copies(params: Params) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in params.items()}
