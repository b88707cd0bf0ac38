"""What the host tells the kernels at each step, copied to a device without waiting for it.

For kernels that take no array in their parameters. Only what changed is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pecker_fast.backends.work import Hyperparameters

__all__ = ["Uploads", "group_words", "is_capturing", "upload"]

_SPARE_STEPS = 4  # that a capture may take where pinned memory cannot be had in one (torch < 2.11)
_NUMPY = {torch.int64: np.int64, torch.float64: np.float64}


class Uploads:
    """Tables of gradient addresses and of hyperparameters.

    A captured graph gets tables of its own, which it fills from pinned memory that stays as it is:
    steps outside of the graph do not disturb it, nor does it disturb them.
    """

    def __init__(self) -> None:
        # What was uploaded last, and where.
        self._values: list[np.ndarray | None] = [None, None]
        self._tables: list[Tensor | None] = [None, None]
        # Pinned memory for the next capture, and what captured graphs go on reading.
        self._spare: list[Tensor] = []
        self._captured: list[Tensor] = []

    def upload(
        self, addresses: np.ndarray, groups: Sequence[Hyperparameters], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The tables, (n,) int64 and (G, 8) float64, on the device."""
        values = [addresses, np.array([_group_row(group) for group in groups]).reshape(-1)]
        if is_capturing(device):
            tables = [self._upload_captured(array, device) for array in values]
        else:
            tables = [self._table(i, array, device) for i, array in enumerate(values)]
            if len(self._spare) < 2 * _SPARE_STEPS:
                self._spare = [_pinned(len(a), device) for a in values for _ in range(_SPARE_STEPS)]
        group_table = tables[1].view(-1, 8)
        for i, group in enumerate(groups):
            for column, value in enumerate((group.lr, group.beta1, group.beta2)):
                if isinstance(value, Tensor):
                    group_table[i, column].copy_(value.detach().view(()), non_blocking=True)
        return tables[0], group_table

    def _table(self, i: int, values: np.ndarray, device: torch.device) -> Tensor:
        table, last = self._tables[i], self._values[i]
        if table is None or last is None or not np.array_equal(values, last):
            dtype = torch.int64 if values.dtype == np.int64 else torch.float64
            table = self._tables[i] = upload(values, dtype, device, table)
            self._values[i] = values
        return table

    def _upload_captured(self, values: np.ndarray, device: torch.device) -> Tensor:
        fits = [tensor for tensor in self._spare if tensor.numel() == len(values)]
        host = fits[0] if fits else _pinned(len(values), device)
        self._spare = [tensor for tensor in self._spare if tensor is not host]
        host.numpy()[:] = values.view(np.int64)
        table = torch.empty(len(values), dtype=torch.int64, device=device)
        table.copy_(host, non_blocking=True)
        self._captured += [host, table]
        return table if values.dtype == np.int64 else table.view(torch.float64)


def group_words(
    groups: Sequence[Hyperparameters], device: torch.device
) -> tuple[np.ndarray, list[Tensor]]:
    """(G, 9) int64, struct GroupNumbers of csrc/cuda/kernels.h, and the tensors it points to."""
    words = np.array([(*_group_row(group), 0.0) for group in groups]).view(np.int64)
    pointed_to = []
    for i, group in enumerate(groups):
        for column, value in enumerate((group.lr, group.beta1, group.beta2)):
            if isinstance(value, Tensor):
                number = value.detach().to(device, torch.float64, non_blocking=True)
                pointed_to.append(number)
                words[i, column] = number.data_ptr()
                words[i, 8] |= 1 << column
    return words, pointed_to


def is_capturing(device: torch.device) -> bool:
    """Whether launches are recorded into a CUDA graph instead of run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(
    values: Sequence[float] | np.ndarray,
    dtype: torch.dtype,
    device: torch.device,
    out: Tensor | None = None,
) -> Tensor:
    """Copy numbers to the device without waiting, into `out` if there is one."""
    host = torch.from_numpy(np.array(values, dtype=_NUMPY[dtype]))  # torch.tensor is slower
    if device.type != "cuda":
        return host
    # The allocator of pinned memory does not reuse it before the copy is done.
    pinned = host.pin_memory()
    if out is None:
        return pinned.to(device, non_blocking=True)
    return out.copy_(pinned, non_blocking=True)


def _pinned(count: int, device: torch.device) -> Tensor:
    """(count,) int64 on the host, from where `device` can copy without waiting."""
    return torch.empty(count, dtype=torch.int64, pin_memory=device.type == "cuda")


def _group_row(group: Hyperparameters) -> tuple[float, ...]:
    """Struct GroupRow of csrc/adamw_math.h. What is on the device, here -1, is read there."""
    return (
        -1.0 if isinstance(group.lr, Tensor) else group.lr,
        -1.0 if isinstance(group.beta1, Tensor) else group.beta1,
        -1.0 if isinstance(group.beta2, Tensor) else group.beta2,
        group.eps,
        group.weight_decay,
        float("inf") if group.clip_value is None else group.clip_value,
        -1.0 if group.maximize else 1.0,
        float(group.amsgrad),
    )
