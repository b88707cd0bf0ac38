"""The tables that device kernels read: made once per mask, brought up to date at each step.

Nothing here makes the host wait: what changes from step to step (where gradients lie,
hyperparameters) is uploaded from pinned memory, and only if it did change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pecker_fast.backends.fitting import (
    check_shapes,
    last_positions,
    same_order,
    slot_offsets,
    state_fits,
)
from pecker_fast.backends.kernels import ROW_NUMBERS
from pecker_fast.backends.work import PARAM_DTYPES, Entry, Hyperparameters

__all__ = [
    "DeviceWork",
    "Launch",
    "address",
    "is_capturing",
    "on",
    "read_as",
    "remembered_tables",
    "stream_of",
    "upload",
    "work_list",
]

_HALVES = (torch.bfloat16, torch.float16)
_NUMPY = {torch.int64: np.int64, torch.float64: np.float64}
_is_contiguous: Any = Tensor.is_contiguous
_TABLE_COLUMNS = 10  # struct AdamWTensor in csrc/cuda/kernels.h

# Of a gradient: its dtype, and its strides or True where it is contiguous.
_Layout: TypeAlias = tuple[torch.dtype, bool | tuple[int, ...]]


@dataclass(frozen=True)
class Launch:
    """One launch of the update: everything of one pair of types."""

    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    extras: bool  # some entry has a max_exp_avg_sq, a master or start classes
    blocks: Tensor  # (B, 2) int32


@dataclass
class _Fit:
    """How an entry and gradients of one layout go into the kernel."""

    layout: _Layout
    grad_dtype: torch.dtype  # as the kernel reads it
    grad_offsets: Tensor | None  # kept alive: the table holds its address
    # "reference" does the whole update in torch, "copy" brings the gradient into an order and a
    # dtype that the kernel reads.
    detour: Literal["reference", "copy"] | None


class DeviceWork:
    """Entries of one device, and what the kernels read. Made by `DeviceBackend.prepare`.

    Args:
        entries: the parameters with their state; they stay where they are.
        steps: (n,) float32 step counts, on the device.
        compact_grads: gradients come as (nnz,) tensors.
        slots_per_block: of the kernels.
    """

    def __init__(
        self, entries: Sequence[Entry], steps: Tensor, compact_grads: bool, slots_per_block: int
    ) -> None:
        self.entries = tuple(entries)
        self.params = [entry.param for entry in entries]
        self.steps = steps
        self.device = steps.device
        self.compact_grads = compact_grads
        self._slots_per_block = slots_per_block

        rows: list[list[int]] = []
        starts: list[int] = []
        self._first_rows: list[int] = []
        for entry in entries:
            is_double = int(entry.param.dtype == torch.float64)
            rows.append([entry.group, len(starts), len(entry.starts), is_double])
            self._first_rows.append(len(starts))
            starts += entry.starts
        # Inputs and output of `Kernels.advance`.
        self.entry_table = torch.tensor(rows, dtype=torch.int64).view(-1, 4).to(self.device)
        self.starts = torch.tensor(starts, dtype=torch.float32).to(self.device)
        self.rows = torch.zeros(len(starts), ROW_NUMBERS, dtype=torch.float64, device=self.device)
        # Inputs of `Kernels.masked_adamw`, for the gradient layouts seen so far.
        self.table = torch.empty(0, _TABLE_COLUMNS, dtype=torch.int64, device=self.device)
        self.launches: list[Launch] = []
        self.detours: dict[int, Literal["reference", "copy"]] = {}
        self._fits: list[_Fit | None] = [None] * len(entries)
        # The gradients' dtypes, if all are there, contiguous, and the tables are made for them.
        self._dtypes: list[torch.dtype] | None = None
        self._last_positions = last_positions(entries)
        self._param_offsets = [slot_offsets(entry.indices, entry.param) for entry in entries]
        # What was uploaded last, and where.
        self._grads: list[int] = []
        self._grad_table: Tensor | None = None
        self._numbers: list[float] = []
        self._group_table: Tensor | None = None
        # Pinned memory for the next capture, and what captured graphs go on reading.
        self._spare: list[Tensor] = []
        self._captured: list[Tensor] = []

    @property
    def captured(self) -> bool:
        """Whether a captured graph goes on reading what this holds."""
        return bool(self._captured)

    # ---- gradient layouts

    def refresh(self, grads: Sequence[Tensor | None]) -> None:
        """Make the tables anew if a gradient's layout changed.

        Raises:
            PeckerError: a gradient or parameter of another shape than the state's.
        """
        try:  # the usual case, at C speed: every parameter has a contiguous gradient
            dtypes = [grad.dtype for grad in grads]  # type: ignore[union-attr]
            if dtypes == self._dtypes and all(map(_is_contiguous, grads)):
                return
        except (AttributeError, TypeError):
            dtypes = None
        layouts = [
            None if grad is None else (grad.dtype, grad.is_contiguous() or grad.stride())
            for grad in grads
        ]
        changed = False
        for i, (grad, layout) in enumerate(zip(grads, layouts, strict=True)):
            fit = self._fits[i]
            if grad is not None and layout is not None and (fit is None or fit.layout != layout):
                self._fits[i] = self._fit(i, grad, layout)
                changed = True
        if changed:
            self._make_tables()
        contiguous = all(layout is not None and layout[1] is True for layout in layouts)
        self._dtypes = dtypes if contiguous else None

    def _fit(self, i: int, grad: Tensor, layout: _Layout) -> _Fit:
        entry, param = self.entries[i], self.params[i]
        check_shapes(entry, grad, self.compact_grads, self._last_positions[i])
        offsets = self._param_offsets[i]
        reads = read_as(param, grad)
        if param.dtype not in PARAM_DTYPES or not state_fits(entry) or not _is_int32(offsets):
            return _Fit(layout, reads, None, "reference")
        if self.compact_grads:
            return _Fit(layout, reads, None, None if reads == grad.dtype else "copy")
        grad_offsets = slot_offsets(entry.indices, grad)
        ordered = entry.indices is not None or same_order(grad, param)
        if reads != grad.dtype or not ordered or not _is_int32(grad_offsets):
            # The copy is contiguous; without indices it has the parameter's strides.
            whole = entry.indices is None or entry.nnz == param.numel()
            return _Fit(layout, reads, None if whole else entry.indices, "copy")
        return _Fit(layout, reads, grad_offsets, None)

    def _make_tables(self) -> None:
        if self._captured:  # a captured graph may go on reading these
            self._captured += [self.table, *(launch.blocks for launch in self.launches)]
        rows = []
        chosen: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
        extras = set()
        self.detours = {}
        for i, (entry, fit) in enumerate(zip(self.entries, self._fits, strict=True)):
            optional = (entry.max_exp_avg_sq, entry.master, entry.start_class)
            offsets = (self._param_offsets[i], fit.grad_offsets if fit else None)
            pointers = (entry.param, *offsets, entry.exp_avg, entry.exp_avg_sq, *optional)
            rows.append([*map(address, pointers), self._first_rows[i], entry.nnz])
            if fit is None:
                continue
            if fit.detour is not None:
                self.detours[i] = fit.detour
            if fit.detour != "reference":
                key = (entry.param.dtype, fit.grad_dtype)
                chosen.setdefault(key, []).append(i)
                if any(tensor is not None for tensor in optional):
                    extras.add(key)
        table = np.array(rows, dtype=np.int64).reshape(-1)
        self.table = upload(table, torch.int64, self.device).view(-1, _TABLE_COLUMNS)
        self.launches = []
        for key, numbers in chosen.items():
            sizes = [self.entries[i].nnz for i in numbers]
            blocks = work_list(sizes, self._slots_per_block, self.device, numbers)
            self.launches.append(Launch(*key, key in extras, blocks))

    # ---- what changes from step to step

    def upload(
        self, addresses: list[int], groups: Sequence[Hyperparameters]
    ) -> tuple[Tensor, Tensor]:
        """The tables of gradient addresses, (n,), and of hyperparameters, (G, 8), on the device.

        A captured graph gets tables of its own, which it fills from pinned memory that stays as it
        is: steps outside of the graph do not disturb it, nor does it disturb them.
        """
        numbers = [number for group in groups for number in _group_row(group)]
        if is_capturing(self.device):
            grad_table = self._upload_captured(addresses, torch.int64)
            group_table = self._upload_captured(numbers, torch.float64)
        else:
            if self._grad_table is None or addresses != self._grads:
                self._grad_table = upload(addresses, torch.int64, self.device, self._grad_table)
                self._grads = addresses
            if self._group_table is None or numbers != self._numbers:
                self._group_table = upload(numbers, torch.float64, self.device, self._group_table)
                self._numbers = numbers
            if not self._spare:  # pinned memory cannot be had during a capture
                self._spare = [_pinned(len(values), self.device) for values in (addresses, numbers)]
            grad_table, group_table = self._grad_table, self._group_table
        group_table = group_table.view(-1, 8)
        for i, group in enumerate(groups):
            for column, value in enumerate((group.lr, group.beta1, group.beta2)):
                if isinstance(value, Tensor):
                    group_table[i, column].copy_(value.detach().view(()), non_blocking=True)
        return grad_table, group_table

    def _upload_captured(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        fits = [tensor for tensor in self._spare if tensor.numel() == len(values)]
        host = fits[0] if fits else _pinned(len(values), self.device)
        self._spare = [tensor for tensor in self._spare if tensor is not host]
        host.view(dtype).numpy()[:] = values
        table = torch.empty(len(values), dtype=dtype, device=self.device)
        table.copy_(host.view(dtype), non_blocking=True)
        self._captured += [host, table]
        return table


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make the device current: a launch goes to the current device's context."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def stream_of(device: torch.device) -> int:
    """Torch's current stream there; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def is_capturing(device: torch.device) -> bool:
    """Whether launches are recorded into a CUDA graph instead of run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _pinned(count: int, device: torch.device) -> Tensor:
    """(count,) int64 on the host, from where `device` can copy without waiting."""
    return torch.empty(count, dtype=torch.int64, pin_memory=device.type == "cuda")


def read_as(param: Tensor, grad: Tensor) -> torch.dtype:
    """The dtype in which the kernel reads such a gradient: its own, if it knows the pair."""
    if grad.dtype == param.dtype or param.dtype == torch.float64:
        return param.dtype
    if param.dtype == torch.float32 and grad.dtype in _HALVES:
        return grad.dtype
    return torch.float32


def address(tensor: Tensor | None) -> int:
    """Where it starts; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


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


def work_list(
    sizes: Sequence[int] | np.ndarray,
    chunk_size: int,
    device: torch.device,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """(B, 2) int32 on `device`: (row, chunk) for every chunk of `chunk_size` of each row.

    It is made on the device: for a large network it has a million rows.

    Args:
        sizes: the number of slots or items of each row.
        chunk_size: of a block.
        device: where the list is wanted.
        rows: their numbers. None: 0, 1, ...
    """
    counts = -(-np.asarray(sizes, dtype=np.int64) // chunk_size)
    numbers = np.arange(len(counts)) if rows is None else np.asarray(rows, dtype=np.int64)
    starts = counts.cumsum() - counts
    total = int(counts.sum())
    table = upload(np.stack([numbers, starts, counts]).reshape(-1), torch.int64, device)
    number, start, count = table.view(3, -1)
    of_block = torch.repeat_interleave(count, output_size=total)
    blocks = torch.empty(total, 2, dtype=torch.int32, device=device)
    blocks[:, 0] = number[of_block]
    blocks[:, 1] = torch.arange(total, device=device) - start[of_block]
    return blocks


@lru_cache(maxsize=32)
def remembered_tables(
    numbers: tuple[int, ...],
    sizes: tuple[int, ...],
    chunk_size: int,
    device: torch.device,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """A table of addresses and the work list over vectors of these sizes.

    For lists of tensors that come again and again. A capture finds them if the same list came
    before on its stream: they cannot be made during one.

    Args:
        numbers: of the table.
        sizes: of the vectors.
        chunk_size: of a block.
        device: where both are wanted.
        stream: on which they are made; another one would have to wait for it.
    """
    return upload(numbers, torch.int64, device), work_list(sizes, chunk_size, device)


def _is_int32(offsets: Tensor | None) -> bool:
    return offsets is None or offsets.dtype == torch.int32


def _group_row(group: Hyperparameters) -> tuple[float, ...]:
    """Struct GroupRow of csrc/adamw_math.h. What is on the device, here -1, is copied there."""
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
