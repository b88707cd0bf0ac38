"""The Triton kernels of kernels/, behind the reference's signatures."""

from __future__ import annotations

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

__all__ = [
    "STEPS_ON_DEVICE",
    "TritonKernels",
    "ema_salient_",
    "gather_salient_",
    "masked_adamw_",
    "norm_salient",
    "prepare",
    "scatter_salient_",
    "select_groups",
    "select_topk",
    "swap_salient_",
]


class TritonKernels:
    """`kernels.Kernels` by Triton; launches go to torch's current device and stream."""

    slots_per_block: int = elements.SLOTS_PER_BLOCK

    items_per_tile = staticmethod(topk_items.items_per_tile)
    advance = staticmethod(advance_kernels.advance)
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


_backend = DeviceBackend(TritonKernels())
STEPS_ON_DEVICE = True
prepare = _backend.prepare
masked_adamw_ = _backend.masked_adamw_
gather_salient_ = _backend.gather_salient_
scatter_salient_ = _backend.scatter_salient_
swap_salient_ = _backend.swap_salient_
ema_salient_ = _backend.ema_salient_
norm_salient = _backend.norm_salient
select_topk = _backend.select_topk
select_groups = _backend.select_groups
