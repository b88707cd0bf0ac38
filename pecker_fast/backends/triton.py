"""The Triton kernels of kernels/, behind the reference's signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pecker_fast.backends.device import DeviceBackend
from pecker_fast.kernels import (
    adamw,
    elements,
    topk_items,
    topk_select,
    topk_write,
)
from pecker_fast.kernels import advance as advance_kernels
from pecker_fast.kernels import salient as salient_kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from pecker_fast.backends.kernels import StepTables
    from pecker_fast.backends.work import Hyperparameters

__all__ = ["BACKEND", "TritonKernels"]


class TritonKernels:
    """`kernels.Kernels` by Triton; launches go to torch's current device and stream."""

    slots_per_block: int = elements.SLOTS_PER_BLOCK

    items_per_tile = staticmethod(topk_items.items_per_tile)
    masked_adamw = staticmethod(adamw.masked_adamw)
    salient = staticmethod(salient_kernels.salient)
    salient_one = staticmethod(salient_kernels.salient_one)
    sum_squares = staticmethod(salient_kernels.sum_squares)
    sample = staticmethod(topk_select.sample)
    histogram = staticmethod(topk_select.histogram)
    pick = staticmethod(topk_select.pick)
    collect = staticmethod(topk_select.collect)
    settle = staticmethod(topk_select.settle)
    count = staticmethod(topk_write.count)
    trim = staticmethod(topk_write.trim)
    write = staticmethod(topk_write.write)

    def advance(
        self,
        tables: StepTables,
        addresses: np.ndarray,
        groups: Sequence[Hyperparameters],
        found_inf: Tensor | None,
    ) -> Tensor:
        """As the protocol's."""
        grads, group_table = tables.uploads.upload(addresses, groups, tables.entries.device)
        advance_kernels.advance(
            tables.entries, grads, group_table, tables.starts, tables.steps, tables.rows, found_inf
        )
        return grads


BACKEND = DeviceBackend(TritonKernels(), "triton")
