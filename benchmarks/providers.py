"""What step_time.py times: ours on every backend, checked first, and what people run today."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
from inputs import Case, Masks, Params, bytes_floor
from torch import Tensor

from pecker_fast import backends
from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW

__all__ = [
    "Builder",
    "NotApplicable",
    "Provider",
    "baselines",
    "frozen_kept",
    "gate",
    "ours",
    "usable_backends",
]

# rtol and atol by dtype, as in the tests: low precision may round to either neighbour.
TOLERANCES = {
    torch.float32: (1e-6, 1e-7),
    torch.bfloat16: (2**-7, 1e-7),
    torch.float16: (2**-10, 1e-7),
}


@dataclass
class Provider:
    """One way to take a step."""

    step: Callable[[], object]
    bytes_moved: int  # what it must move at least
    state_bytes: int  # the optimizer's state
    mask_bytes: int  # positions, masks, copies to restore from
    match: bool | None = None  # passed its check; None: nothing to check it against


Builder = Callable[[], Provider]


class NotApplicable(Exception):
    """A provider cannot do this case; the message says why."""


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---- ours


def usable_backends(requested: list[str] | None, device: str) -> list[str]:
    """The backends to measure: those asked for, else every optimized one for `device`.

    Raises:
        PeckerError: one that was asked for cannot be used.
    """
    if requested:
        return [backends.name_of(backends.select(name, device)) for name in requested]
    # On the CPU, GPU kernels run for tests only.
    names = ("cpu",) if torch.device(device).type == "cpu" else ("cuda", "triton")
    reasons = backends.available()
    return [name for name in names if reasons.get(name, "") is None] or ["reference"]


def ours(case: Case, backend: str) -> MaskedAdamW:
    """The optimizer under test."""
    return MaskedAdamW(case.params.items(), **case.options, mask=case.masks, backend=backend)


def checked_ours(case: Case, backend: str) -> Provider:
    """The optimizer after three steps that were compared with the reference's."""
    before = {name: param.detach().clone() for name, param in case.params.items()}
    try:
        optimizer = ours(case, backend)
    except PeckerError as error:  # e.g. a tensor too large for int32 positions
        raise NotApplicable(str(error)) from None
    match = gate(case, optimizer, before)
    positions = 0 if case.masks is None else 4 * sum(
        optimizer.state[param]["exp_avg_sq"].numel() for param in case.params.values()
    )  # fmt: skip
    return Provider(
        optimizer.step,
        bytes_floor(case),
        nbytes(tensor for state in optimizer.state.values() for tensor in state.values()),
        positions,
        match,
    )


def gate(case: Case, optimizer: MaskedAdamW, before: dict[str, Tensor]) -> bool:
    """Three steps: parameters and state as the reference's, and every frozen bit kept.

    Each step finds new gradient tensors of the opposite sign: one that was remembered by its
    address, or not read again, shows.

    The reference runs on one parameter at a time, so that its state and its temporaries fit beside
    a network that fills half of the memory.

    Args:
        case: its parameters, which `optimizer` will change.
        optimizer: made, no step taken.
        before: copies of the parameters; the reference starts from them and changes them.
    """
    for step in range(3):
        if step > 0:
            case.negate_grads()
        optimizer.step()
    if not frozen_kept(case.params, before, case.masks):
        return False
    for name, param in case.params.items():
        masks = None if case.masks is None else {name: case.masks[name]}
        if masks is not None and not masks[name].any():
            continue  # frozen as a whole
        expected = torch.nn.Parameter(before[name])
        expected.grad = param.grad
        reference = MaskedAdamW([(name, expected)], **case.options, mask=masks, backend="reference")
        for step in range(3):
            if step > 0:
                expected.grad = -expected.grad
            reference.step()
        if not torch.allclose(param, expected, *TOLERANCES[case.dtype]):
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


def baselines(case: Case) -> dict[str, Builder]:
    """The optimizers of torch, alone and after `grad *= mask`, with and without restoring."""
    params = list(case.params.values())
    size, numel = nbytes(params), sum(param.numel() for param in params)
    step_bytes = 7 * size  # parameter and moments read and written, gradient read

    @cache  # those that use it share it: only the time of a step matters
    def fused() -> torch.optim.AdamW:
        return _stepped(torch.optim.AdamW(params, **case.options, fused=True))

    def foreach() -> Provider:
        optimizer = _stepped(torch.optim.AdamW(params, **case.options, foreach=True))
        return Provider(optimizer.step, step_bytes, _state_bytes(optimizer), 0)

    def alone() -> Provider:
        return Provider(fused().step, step_bytes, _state_bytes(fused()), 0)

    # foreach first: it is the only one with a state of its own, which can go before the others come
    builders: dict[str, Builder] = {"torch_foreach": foreach, "torch_fused": alone}
    if case.masks is None:
        return builders

    def gradmask(dtype: torch.dtype) -> Provider:
        masks = {name: mask.to(dtype) for name, mask in case.masks.items()}

        def step() -> None:
            for name, param in case.params.items():
                param.grad.mul_(masks[name])
            fused().step()

        moved = step_bytes + 2 * size + numel * dtype.itemsize
        return Provider(step, moved, _state_bytes(fused()), nbytes(masks.values()))

    def gradmask_foreach() -> Provider:
        masks = [mask.to(case.dtype) for mask in case.masks.values()]

        def step() -> None:
            torch._foreach_mul_([param.grad for param in params], masks)
            fused().step()

        return Provider(step, step_bytes + 3 * size, _state_bytes(fused()), nbytes(masks))

    def restore() -> Provider:
        originals = {name: param.detach().clone() for name, param in case.params.items()}
        masked = gradmask(torch.bool)

        @torch.no_grad()
        def step() -> None:
            masked.step()
            for name, param in case.params.items():
                param.copy_(torch.where(case.masks[name], param, originals[name]))

        step()
        return Provider(
            step,
            masked.bytes_moved + 5 * size + numel,
            masked.state_bytes,
            masked.mask_bytes + nbytes(originals.values()),
            frozen_kept(case.params, originals, case.masks),
        )

    builders["gradmask_fused"] = partial(gradmask, torch.bool)
    builders["gradmask_int64_fused"] = partial(gradmask, torch.int64)  # as SalUn's files have them
    builders["gradmask_foreach_fused"] = gradmask_foreach
    builders["gradmask_fused_restore"] = restore
    return builders


def _stepped(optimizer: torch.optim.AdamW) -> torch.optim.AdamW:
    """After one step, so that its state is there to be counted."""
    optimizer.step()
    return optimizer


def _state_bytes(optimizer: torch.optim.AdamW) -> int:
    return nbytes(tensor for state in optimizer.state.values() for tensor in state.values())
