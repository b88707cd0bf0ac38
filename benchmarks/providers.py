"""Ways to take an optimizer step: ours on every backend, checked first, and what people run today.

Looked at and left out: gsplat's SelectiveAdam (a launch for each parameter, dense moments, neither
weight decay nor bias correction), bitsandbytes' `skip_zeros` (it skips wherever the gradient is
zero, salient or not), sparse and lazy Adams (whole rows), and dense fused AdamWs, of which torch's
is here already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from bench import Builder, NotApplicable, Provider
from inputs import Masks, Params, StepInput, bytes_floor, nbytes
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

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


def checked_ours(made: StepInput, backend: str) -> Provider:
    """The optimizer after three steps that were compared with the reference's."""
    before = _copies(made.params)
    try:
        optimizer = ours(made, backend)
    except PeckerError as error:  # e.g. a tensor too large for int32 positions
        raise NotApplicable(str(error)) from None
    match = gate(made, optimizer, before)
    return _provider(made, optimizer, optimizer.step, bytes_floor(made), match)


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
    """Torch's fused AdamW, alone and after `grad *= mask`, with and without restoring.

    Only the time of a step matters, so they share one optimizer.
    """
    params, masks = list(made.params.values()), made.masks
    size, numel = nbytes(params), sum(param.numel() for param in params)
    step_bytes = 7 * size  # parameter and moments read and written, gradient read

    @cache
    def fused() -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(params, **made.options, fused=True)
        optimizer.step()  # its state is there to be counted
        return optimizer

    def dense() -> Provider:
        return _provider(made, fused(), fused().step, step_bytes)

    def masked_step() -> None:
        for name, param in made.params.items():
            param.grad.mul_(masks[name])
        fused().step()

    def gradmask() -> Provider:
        return _provider(made, fused(), masked_step, step_bytes + 2 * size + numel)

    def restore() -> Provider:
        originals = _copies(made.params)

        @torch.no_grad()
        def step() -> None:
            masked_step()
            for name, param in made.params.items():
                param.copy_(torch.where(masks[name], param, originals[name]))

        step()
        moved = step_bytes + 7 * size + 2 * numel
        return _provider(made, fused(), step, moved, frozen_kept(made.params, originals, masks))

    builders: dict[str, Builder] = {"torch_fused": dense}
    if masks is not None:
        builders |= {"gradmask_fused": gradmask, "gradmask_fused_restore": restore}
    return builders


def _provider(
    made: StepInput,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], object],
    bytes_moved: int,
    match: bool | None = None,
) -> Provider:
    state = (tensor for values in optimizer.state.values() for tensor in values.values())
    columns = {"bytes_moved": bytes_moved, "state_bytes": nbytes(state)}
    return Provider(step, match, columns, made.fresh_grads)


def _copies(params: Params) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in params.items()}
