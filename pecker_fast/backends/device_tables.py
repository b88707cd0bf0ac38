"""The tables that device kernels read: made once per mask, brought up to date at each step.

Nothing here makes the host wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

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
from pecker_fast.backends.kernels import ROW_NUMBERS, StepTables
from pecker_fast.backends.uploads import upload
from pecker_fast.backends.work import PARAM_DTYPES, Entry, Layouts, look

__all__ = [
    "DeviceWork",
    "Launch",
    "address",
    "on",
    "read_as",
    "remembered_tables",
    "stream_of",
    "work_list",
]

_HALVES = (torch.bfloat16, torch.float16)
_TABLE_COLUMNS = 10  # struct AdamWTensor in csrc/cuda/kernels.h

# Of a gradient: its dtype, shape, and strides or True where it is contiguous.
_Layout: TypeAlias = tuple[torch.dtype, torch.Size, bool | tuple[int, ...]]


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
        table = torch.tensor(rows, dtype=torch.int64).view(-1, 4)
        self.tables = StepTables(
            entries=table.to(self.device),
            host_entries=table,
            starts=torch.tensor(starts, dtype=torch.float32).to(self.device),
            steps=steps,
            rows=torch.zeros(len(starts), ROW_NUMBERS, dtype=torch.float64, device=self.device),
            grads=torch.zeros(len(rows), dtype=torch.int64, device=self.device),
        )
        # Inputs of `Kernels.masked_adamw`, for the gradient layouts seen so far.
        self.table = torch.empty(0, _TABLE_COLUMNS, dtype=torch.int64, device=self.device)
        self.launches: list[Launch] = []
        self.detours: dict[int, Literal["reference", "copy"]] = {}
        self._fits: list[_Fit | None] = [None] * len(entries)
        self._layouts: Layouts | None = None  # of the gradients that the tables are made for
        self._last_positions = last_positions(entries)
        self._param_offsets = [slot_offsets(entry.indices, entry.param) for entry in entries]
        self.captured = False  # whether a captured graph goes on reading what this holds
        self._former: list[Tensor] = []  # tables that only such a graph reads

    # ---- gradient layouts

    def refresh(self, grads: Sequence[Tensor | None]) -> np.ndarray:
        """Make the tables anew if a gradient's layout changed.

        Returns:
            (n,) int64 addresses, 0 without a gradient, 1 for one without elements.

        Raises:
            PeckerError: a gradient or parameter of another shape than the state's.
        """
        addresses, layouts = look(grads)
        if layouts != self._layouts:
            self._adapt(grads)
            self._layouts = layouts
        if not addresses.all():  # the step of one without elements counts all the same
            missing = np.array([grad is None for grad in grads])
            addresses = np.where(missing | (addresses != 0), addresses, 1)
        return addresses

    def _adapt(self, grads: Sequence[Tensor | None]) -> None:
        changed = False
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            layout = (grad.dtype, grad.shape, grad.is_contiguous() or grad.stride())
            fit = self._fits[i]
            if fit is None or fit.layout != layout:
                self._fits[i] = self._fit(i, grad, layout)
                changed = True
        if changed:
            self._make_tables()

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
        if self.captured:  # a captured graph may go on reading these
            self._former += [self.table, *(launch.blocks for launch in self.launches)]
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


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make the device current: a launch goes to the current device's context."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def stream_of(device: torch.device) -> int:
    """Torch's current stream there; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


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


@lru_cache(maxsize=8)
def _remembered_work_list(
    sizes: tuple[int, ...], chunk_size: int, device: torch.device, stream: int
) -> Tensor:
    """Megabytes for a large network, and the same for all that is done with one mask."""
    return work_list(sizes, chunk_size, device)


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
    blocks = _remembered_work_list(sizes, chunk_size, device, stream)
    return upload(numbers, torch.int64, device), blocks


def _is_int32(offsets: Tensor | None) -> bool:
    return offsets is None or offsets.dtype == torch.int32
