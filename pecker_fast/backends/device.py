"""What the backends for devices share: everything but the kernels.

Per step the host looks whether gradients and hyperparameters are where and what they were, uploads
what changed, and launches: `advance` counts the step and computes its scalars on the device,
`masked_adamw` updates everything of one pair of types. The host never waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from pecker_fast.backends import reference
from pecker_fast.backends.device_tables import (
    DeviceWork,
    address,
    on,
    read_as,
    remembered_tables,
    stream_of,
)
from pecker_fast.backends.device_topk import DeviceTopk
from pecker_fast.backends.kernels import Kernels, Operation
from pecker_fast.backends.salient import Row, SalientOperations
from pecker_fast.backends.uploads import is_capturing
from pecker_fast.backends.work import Entry, Hyperparameters, update_rows

__all__ = ["DeviceBackend", "captured_tables"]

_captured: list[Tensor] = []
_keeper = _captured  # of what captured graphs go on reading


@contextlib.contextmanager
def captured_tables() -> Iterator[list[Tensor]]:
    """What captures in this block go on reading; whoever has the graph keeps the list with it.

    Outside of such a block it is kept for ever: when a graph dies nobody tells.
    """
    global _keeper
    before, _keeper = _keeper, []
    try:
        yield _keeper
    finally:
        _keeper = before


class DeviceBackend(SalientOperations):
    """The functions of a backend, over raw launches. `reference` documents them.

    Attributes:
        kernels: the launches.
    """

    STEPS_ON_DEVICE = True

    def __init__(self, kernels: Kernels, name: str) -> None:
        self.kernels, self.__name__ = kernels, name
        topk = DeviceTopk(kernels)
        self.select_topk = topk.select_topk
        self.select_groups = topk.select_groups

    # ---- the step

    def prepare(
        self, entries: Sequence[Entry], steps: Tensor, compact_grads: bool = False
    ) -> DeviceWork:
        """As `reference.prepare`; `steps` are on the entries' device."""
        return DeviceWork(entries, steps, compact_grads, self.kernels.slots_per_block)

    def masked_adamw_(
        self,
        work: DeviceWork,
        grads: Sequence[Tensor | None],
        groups: Sequence[Hyperparameters],
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """As `reference.masked_adamw_`, without waiting for the device."""
        with on(work.device):
            grad_scale = _scalar_on(grad_scale, work.device)
            found_inf = _scalar_on(found_inf, work.device)
            addresses = work.refresh(grads)
            work.captured = work.captured or is_capturing(work.device)
            copies = {}
            if work.detours:
                addresses = addresses.copy()
            for i, detour in work.detours.items():
                grad = grads[i]
                if grad is not None and detour == "copy":
                    copies[i] = _copied(work.entries[i], grad)
                    addresses[i] = copies[i].data_ptr() or 1
            grad_table = self.kernels.advance(work.tables, addresses, groups, found_inf)
            for launch in work.launches:
                self.kernels.masked_adamw(
                    launch.param_dtype, launch.grad_dtype, launch.extras, work.table, grad_table,
                    work.tables.rows, launch.blocks, grad_scale, found_inf,
                )  # fmt: skip
            if work.detours:
                _take_detours(work, grads, copies, groups, grad_scale, found_inf)
        if addresses.all():
            increment_version(work.params)
        else:
            increment_version([p for p, found in zip(work.params, addresses, strict=True) if found])

    # ---- salient entries

    def _launch(self, operation: Operation, rows: list[Row], decay: float) -> None:
        """Launch once per pair of types."""
        by_types: dict[tuple[torch.dtype, torch.dtype], list[Row]] = {}
        for row in rows:
            by_types.setdefault((row.dense.dtype, row.compact.dtype), []).append(row)
        for (dense_dtype, compact_dtype), some in by_types.items():
            device = some[0].dense.device
            with on(device):
                if len(some) == 1:  # a backward hook's: no table
                    self.kernels.salient_one(operation, *some[0], decay)
                    continue
                numbers = (
                    number for row in some for number in (*map(address, row), row.compact.numel())
                )
                table, blocks = self._tables(numbers, [row.compact for row in some], device)
                self.kernels.salient(
                    operation, dense_dtype, compact_dtype, table.view(-1, 4), blocks, decay
                )

    def norm_salient(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `reference.norm_salient`: one launch and a sum of one number per block."""
        dtype, device = values[0].dtype, values[0].device
        if any(v.dtype != dtype or not v.is_contiguous() for v in values):
            return reference.norm_salient(values)
        with on(device):
            numbers = (number for v in values for number in (v.data_ptr(), v.numel()))
            table, blocks = self._tables(numbers, values, device)
            partials = torch.empty(len(blocks), dtype=torch.float64, device=device)
            self.kernels.sum_squares(dtype, table.view(-1, 2), blocks, partials)
            norm = partials.sum().sqrt()
            return norm, (~norm.isfinite()).float()

    def _tables(
        self, numbers: Iterable[int], vectors: Sequence[Tensor], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """A table of addresses and the work list over `vectors`, from the last time if they fit."""
        sizes, size = tuple(map(Tensor.numel, vectors)), self.kernels.slots_per_block
        tables = remembered_tables(tuple(numbers), sizes, size, device, stream_of(device))
        if is_capturing(device):
            _keeper.extend(tables)
        return tables


def _take_detours(
    work: DeviceWork,
    grads: Sequence[Tensor | None],
    copies: dict[int, Tensor],
    groups: Sequence[Hyperparameters],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """What the kernel did not do. Entries of kind "reference" make the host wait."""
    for i, copy in copies.items():
        grad = grads[i]
        if grad is not None and grad_scale is not None:
            grad.copy_(copy)
    whole = [i for i, detour in work.detours.items() if detour == "reference"]
    if not whole or (found_inf is not None and found_inf.item() > 0):
        return
    counts = work.steps.tolist()
    for i in whole:
        grad, entry = grads[i], work.entries[i]
        if grad is not None:
            rows, _ = update_rows([entry], [grad], [counts[i]], groups)
            reference.update_entry_(entry, grad, rows, work.compact_grads, grad_scale)


def _scalar_on(scalar: Tensor | None, device: torch.device) -> Tensor | None:
    """A GradScaler's () float32 tensor on this device; it may live on another one."""
    return None if scalar is None else scalar.to(device, torch.float32, non_blocking=True)


def _copied(entry: Entry, grad: Tensor) -> Tensor:
    """The gradient in a dtype and an order that the kernel reads."""
    copy = grad.to(read_as(entry.param, grad))
    if entry.indices is not None:
        return copy.contiguous()
    return torch.empty_like(entry.param, dtype=copy.dtype).copy_(copy)
